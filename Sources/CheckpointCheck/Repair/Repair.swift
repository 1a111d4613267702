public import CheckpointFormat
internal import CheckpointStorage

/// One block that a repair writes.
public struct Repair: Hashable, Sendable {
    /// The finding that it answers.
    public let problem: Problem
    public let fixClass: Problem.Fix.Class
    public let byteOffset: UInt64
    /// Where the copy that it is rewritten from lies; nil when the block is made again.
    public let sourceByteOffset: UInt64?
    /// What is done, in words: `write superblock generation 8, which anchors step 30 in slot 2`.
    public let action: String
    /// The 4096 bytes that are there.
    public let oldBytes: [UInt8]
    /// The 4096 bytes to write.
    public let bytes: [UInt8]

    init(
        _ problem: Problem, _ fixClass: Problem.Fix.Class, at byteOffset: UInt64,
        from sourceByteOffset: UInt64? = nil, _ action: String, old oldBytes: [UInt8],
        new bytes: [UInt8]
    ) {
        self.problem = problem
        self.fixClass = fixClass
        self.byteOffset = byteOffset
        self.sourceByteOffset = sourceByteOffset
        self.action = action
        self.oldBytes = oldBytes
        self.bytes = bytes
    }

    /// A block that is rewritten from its intact copy.
    static func copy(
        _ problem: Problem, _ fixClass: Problem.Fix.Class, at byteOffset: UInt64,
        from sourceByteOffset: UInt64, old oldBytes: [UInt8], new bytes: [UInt8]
    ) -> Repair {
        Repair(
            problem, fixClass, at: byteOffset, from: sourceByteOffset,
            "rewrite the block at byte \(byteOffset) from the intact copy at byte "
                + "\(sourceByteOffset)", old: oldBytes, new: bytes)
    }
}

extension Repair: CustomStringConvertible {
    public var description: String { "\(problem.id): \(action)" }
}

/// What a repair does not decide: it would be a choice between data.
public struct RepairQuestion: Hashable, Sendable {
    public let problem: Problem
    /// What is to be decided, as a question that yes or no answers. No changes nothing.
    public let text: String
}

/// Who repairs, and when: what a superblock records of its writer. One stamp for one repair, so
/// that planning again gives the same bytes.
public struct RepairStamp: Hashable, Sendable {
    /// Nanoseconds since 1970-01-01 UTC.
    public var time: UInt64
    public var bootID: Identifier128
    public var processID: UInt32

    public init(time: UInt64, bootID: Identifier128, processID: UInt32) {
        self.time = time
        self.bootID = bootID
        self.processID = processID
    }

    /// This process, now.
    public static var now: RepairStamp {
        RepairStamp(
            time: SystemClock.wallTime, bootID: ThisMachine.bootID,
            processID: ThisProcess.id)
    }
}
