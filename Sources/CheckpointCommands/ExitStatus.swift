/// Exit status of the tools: the bits of fsck(8), which may be combined.
struct ExitStatus: OptionSet, Hashable, Sendable {
    let rawValue: Int32
    init(rawValue: Int32) { self.rawValue = rawValue }

    static let clean: ExitStatus = []
    /// Findings were corrected.
    static let corrected = ExitStatus(rawValue: 1)
    /// `pcinspect diff`, which corrects nothing: what was compared differs, as in diff(1).
    static let differs = ExitStatus(rawValue: 1)
    /// Findings were left.
    static let uncorrected = ExitStatus(rawValue: 4)
    /// The work could not be done: no such file, no permission, a failing device.
    static let operational = ExitStatus(rawValue: 8)
    static let usage = ExitStatus(rawValue: 16)
    /// SIGINT or SIGTERM came.
    static let cancelled = ExitStatus(rawValue: 32)
}
