internal import CheckpointFormat

/// Why a profile, a job or a setting was refused.
package struct TuningError: Error, Equatable, Sendable {
    package enum Code: Sendable {
        /// A number is negative, not a number, or above what `TuningLimits` allows.
        case outOfRange
        /// A quantity was measured too seldom to show how much it varies.
        case tooFewSamples
        /// The text of a profile has another form.
        case malformed
        /// Something that is needed was not measured.
        case notMeasured
        /// Other load leaves nothing of the device.
        case deviceBusy
        /// The pool has less than one chunk for each writer worker.
        case poolTooSmall
        /// Checkpoints would begin faster than they can become durable.
        case intervalTooShort
        /// No interval costs as little as the budget.
        case budgetTooSmall
        /// No setting fits the disk or the memory.
        case noRoom
    }

    package var code: Code
    /// Found and expected.
    package var message: String

    package init(_ code: Code, _ message: String) {
        self.code = code
        self.message = message
    }

    /// Refuses NaN too.
    static func check(
        _ value: Double, _ what: String, in range: ClosedRange<Double>
    ) throws(TuningError) {
        guard range.contains(value) else {
            throw TuningError(
                .outOfRange,
                "\(what) is \(value), expected \(range.lowerBound) to \(range.upperBound)")
        }
    }

    static func check(
        _ value: Int, _ what: String, in range: ClosedRange<Int>
    ) throws(TuningError) {
        guard range.contains(value) else {
            throw TuningError(
                .outOfRange,
                "\(what) is \(value), expected \(range.lowerBound) to \(range.upperBound)")
        }
    }

    /// A size that a chunk can have.
    static func checkChunk(_ byteCount: Int, _ what: String) throws(TuningError) {
        try check(byteCount, what, in: TuningLimits.chunkByteCount)
        guard byteCount.isMultiple(of: Limits.leafByteCount) else {
            throw TuningError(
                .outOfRange,
                "\(what) has \(byteCount) bytes, expected a multiple of "
                    + "\(Limits.leafByteCount)")
        }
    }
}

/// The numbers that the model accepts. Within them nothing overflows.
package enum TuningLimits {
    package static let profileByteCount = 1 << 20
    /// Of one rank.
    package static let stateByteCount = 1.0...Double(Limits.slotByteCount.upperBound)
    package static let bytesPerSecond = 1e3...1e14
    package static let otherBytesPerSecond = 0.0...1e14
    /// Of a flush, a block, or a call.
    package static let shortSeconds = 0.0...1e4
    package static let stepSeconds = 1e-6...1e6
    /// Of a loop that does nothing, too.
    package static let measuredStepSeconds = 1e-9...1e6
    package static let costSeconds = 0.0...1e9
    package static let durableSeconds = 1e-9...1e9
    package static let meanTimeBetweenFailuresSeconds = 1.0...1e11
    package static let restartSeconds = 0.0...1e9
    package static let compressionRatio = 0.5...1e4
    package static let slowdown = 0.0...1000.0
    package static let budget = 1e-6...1.0
    package static let processorCount = 1...65_536
    package static let rankCount = 1...1_000_000
    package static let ranksPerMachine = 1...1024
    package static let inFlightCount = Limits.inFlightCount
    package static let retainCount = Limits.retainCount
    package static let workerCount = 1...64
    package static let writesPerWorker = 1...64
    package static let chunkByteCount = Limits.chunkByteCount
    package static let sampleCount = 3...10_000
    package static let pointCount = 1...1000
    package static let intervalSteps = 1...1_000_000_000
}
