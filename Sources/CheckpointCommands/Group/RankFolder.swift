internal import CheckpointFormat
internal import CheckpointGroup

#if canImport(Glibc)
    internal import Glibc
#endif

/// A folder with the files of ranks.
struct RankFolder {
    /// As the user named it.
    let path: String
    /// Paths of files with the name of a rank's file: the largest number of ranks first, by rank.
    let files: [String]
    /// Names of everything else, sorted.
    let others: [String]

    static func isFolder(_ path: String) -> Bool {
        var facts = stat()
        // Safe: stat fills the struct that it is given; the path is passed as a C string.
        return unsafe stat(path, &facts) == 0 && facts.st_mode & S_IFMT == S_IFDIR
    }

    /// - Throws: `notFound` for a folder without a rank's file.
    init(path: String) throws(CheckpointError) {
        self.path = path
        let folder = path.hasSuffix("/") ? path : path + "/"
        var ranks: [(name: RankFileName, path: String)] = []
        var others: [String] = []
        for name in try Self.names(in: path) {
            if let rank = RankFileName(path: name) {
                ranks.append((rank, folder + name))
            } else {
                others.append(name)
            }
        }
        ranks.sort { ($1.name.worldSize, $0.name.rank) < ($0.name.worldSize, $1.name.rank) }
        files = ranks.map(\.path)
        self.others = others.sorted()
        guard !files.isEmpty else {
            throw CheckpointError(
                .notFound,
                "\(path): the folder has no file of a rank, such as rank-00000-of-00008.pcc, among "
                    + "\(Quantity.plural(others.count, "file")); name the files of a "
                    + "job without a group one by one")
        }
    }

    static func names(in path: String) throws(CheckpointError) -> [String] {
        // Safe: the path is passed as a C string for the call.
        guard let folder = unsafe opendir(path) else {
            throw CheckpointError(
                .inputOutput, "\(path): the folder cannot be read: \(SystemMessage.text(errno))",
                osErrorNumber: errno)
        }
        // Safe: closed once, after the last use.
        defer { unsafe _ = closedir(folder) }
        guard let offset = MemoryLayout<dirent>.offset(of: \.d_name) else {
            preconditionFailure("dirent has a name")
        }
        var names: [String] = []
        // Safe: an entry is valid until the next call; its name ends with a zero.
        while let entry = unsafe readdir(folder) {
            let name = unsafe String(
                cString: (UnsafeRawPointer(entry) + offset).assumingMemoryBound(to: CChar.self))
            if name != "." && name != ".." { names.append(name) }
        }
        return names
    }

    /// What is not looked at: nil when there is nothing.
    var note: String? {
        if others.isEmpty { return nil }
        let shown = others.prefix(3).joined(separator: ", ")
        return "\(Quantity.plural(others.count, "other file")) ignored: \(shown)"
            + "\(others.count > 3 ? ", …" : "")"
    }
}
