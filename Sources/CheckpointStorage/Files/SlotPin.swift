internal import CPlatformLinux
public import CheckpointFormat

/// A process that has a lock of a file, such as one that pins a slot.
public struct PinHolder: Hashable, Sendable {
    public let processID: UInt32
    /// Its command line, cut to `commandLimit` characters.
    public let command: String

    static let commandLimit = 120

    public init(processID: UInt32, command: String) {
        self.processID = processID
        self.command = command
    }
}

/// A slot that a reader keeps from the writer, with those that have it pinned.
public struct SlotPin: Hashable, Sendable {
    public let slot: SlotIndex
    /// In the order of their process numbers. Empty when this user cannot see who it is: another
    /// user's process, or one of another container or machine.
    public let holders: [PinHolder]

    public init(slot: SlotIndex, holders: [PinHolder]) {
        self.slot = slot
        self.holders = holders
    }
}

extension SlotPin: CustomStringConvertible {
    /// Processes that are named one by one.
    private static let namedCount = 3

    public var description: String {
        guard !holders.isEmpty else {
            return "slot \(slot) is pinned by a process that this user cannot see"
        }
        var names = holders.prefix(Self.namedCount).map { holder in
            holder.processID == ThisProcess.id
                ? "this process (\(holder.processID)), which has a load open"
                : "process \(holder.processID) (\(holder.command))"
        }
        if holders.count > names.count { names.append("\(holders.count - names.count) more") }
        return "slot \(slot) is pinned by \(names.joined(separator: " and "))"
    }
}

/// A lock of one descriptor, as a line of /proc/PID/fdinfo/FD shows it (proc_pid_fdinfo(5)).
struct DescriptorLock: Hashable {
    let isExclusive: Bool
    let bytes: ClosedRange<UInt64>

    /// The open-file-description locks that `text` tells of; lines of other kinds, and such as no
    /// kernel writes, are passed over.
    ///
    /// A line reads `lock:\t1: OFDLCK ADVISORY  READ  -1 fe:00:5246 1024 1024`; the last word may
    /// be `EOF`.
    static func parse(_ text: String) -> [DescriptorLock] {
        text.split(separator: "\n").compactMap { line in
            let words = line.split { $0 == " " || $0 == "\t" }
            guard words.count == 9, words[0] == "lock:", words[2] == "OFDLCK",
                words[4] == "READ" || words[4] == "WRITE", let first = UInt64(words[7]),
                let last = words[8] == "EOF" ? UInt64.max : UInt64(words[8]), first <= last
            else { return nil }
            return DescriptorLock(isExclusive: words[4] == "WRITE", bytes: first...last)
        }
    }
}

/// Who has which bytes of a file locked, as far as /proc shows it: a lock of an open file
/// description belongs to no process, so fcntl(2) does not name one.
enum LockHolders {
    /// The processes with a shared or an exclusive lock on each of `bytes`.
    static func locking(
        _ bytes: [UInt64], exclusively isExclusive: Bool, of descriptor: Int32
    ) -> [UInt64: [PinHolder]] {
        final class Found { var processIDs: [UInt64: Set<UInt32>] = [:] }
        struct Search {
            let bytes: [UInt64]
            let isExclusive: Bool
            let found: Found
        }
        let found = Found()
        var search = Search(bytes: bytes, isExclusive: isExclusive, found: found)
        // Safe: the visitor is called only during the call, with a text of that many bytes.
        _ = unsafe withUnsafeMutablePointer(to: &search) { search in
            unsafe pccp_visit_openers(
                descriptor,
                { context, processID, text, count in
                    guard let context = unsafe context, let text = unsafe text else { return }
                    let search = unsafe context.assumingMemoryBound(to: Search.self).pointee
                    let bytes = unsafe UnsafeRawBufferPointer(start: text, count: count)
                    let info = unsafe String(decoding: bytes, as: UTF8.self)
                    for lock in DescriptorLock.parse(info)
                    where lock.isExclusive == search.isExclusive {
                        for byte in search.bytes where lock.bytes.contains(byte) {
                            search.found.processIDs[byte, default: []].insert(processID)
                        }
                    }
                }, search)
        }
        return found.processIDs.mapValues { processIDs in
            processIDs.sorted().map { PinHolder(processID: $0, command: command(of: $0)) }
        }
    }

    /// The command line of a process, on one line.
    private static func command(of processID: UInt32) -> String {
        var bytes = [UInt8](repeating: 0, count: 4096)
        // Safe: fills at most the array.
        let count = unsafe bytes.withUnsafeMutableBytes {
            unsafe pccp_process_command(
                processID, $0.baseAddress?.assumingMemoryBound(to: CChar.self), $0.count)
        }
        return oneLine(bytes.prefix(count))
    }

    /// Arguments end with a NUL; whatever a terminal would obey becomes a question mark.
    static func oneLine(_ bytes: some Sequence<UInt8>) -> String {
        let words = Array(bytes).split(separator: 0).map { String(decoding: $0, as: UTF8.self) }
        let text = words.joined(separator: " ").split(separator: "\n").joined(separator: " ")
        let clean = String(
            String.UnicodeScalarView(
                text.unicodeScalars.map {
                    $0.properties.generalCategory == .control ? "?" : $0
                }))
        guard clean.count > PinHolder.commandLimit else { return clean.isEmpty ? "?" : clean }
        return clean.prefix(PinHolder.commandLimit - 1) + "…"
    }
}
