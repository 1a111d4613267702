/// Names of files beside another one: its name and a suffix.
public enum SiblingPath {
    /// NAME_MAX of Linux, in bytes.
    static let nameByteCountMaximum = 255

    /// `path` and `suffix`. A name that leaves no room for the suffix loses its last characters,
    /// because a name that the file system takes must be usable as it is.
    public static func path(beside path: String, suffix: String) -> String {
        stem(of: path, suffixByteCount: suffix.utf8.count) + suffix
    }

    /// `path`, shortened so that its name has room for a suffix.
    static func stem(of path: String, suffixByteCount: Int) -> String {
        let nameByteCount = path.utf8.reversed().prefix { $0 != UInt8(ascii: "/") }.count
        var cut = Substring(path)
        var excess = nameByteCount + suffixByteCount - nameByteCountMaximum
        while excess > 0, let last = cut.unicodeScalars.last, last != "/" {
            cut.unicodeScalars.removeLast()
            excess -= UTF8.width(last)
        }
        return String(cut)
    }
}
