internal import CheckpointFormat

/// Why a trace was refused: where, what was found, and what was expected.
package struct TraceError: Error, Equatable, Sendable, JSONScannerFailure {
    package enum Code: Sendable {
        /// Nothing is in it.
        case empty
        /// The text has another form than its format.
        case malformed
        /// The text ends in the middle of something.
        case truncated
        /// A value is negative, not a number, or above what `TraceLimits` allows.
        case outOfRange
        /// A time is before the one above it.
        case unsorted
        /// Nothing changes, so that nothing can be replayed.
        case constant
        /// Two entries contradict each other.
        case contradiction
        /// There is more of it than `TraceLimits` allows.
        case tooLarge
    }

    package var code: Code
    /// From 1; nil when the error is about all of the text.
    package var line: Int?
    /// Found and expected, without the line.
    package var detail: String

    package init(_ code: Code, line: Int? = nil, _ detail: String) {
        self.code = code
        self.line = line
        self.detail = detail
    }

    /// What the scanner of JSON found; the parser adds the line.
    package init(json message: String) {
        self.init(message.contains("past the end") ? .truncated : .malformed, message)
    }

    package var message: String { line.map { "line \($0): \(detail)" } ?? detail }
}

/// The largest trace that is read. Everything that is allocated for one follows from these.
package enum TraceLimits {
    package static let byteCount = 256 << 20
    /// Samples, events or failures of all traces of one file.
    package static let entryCount = 5_000_000
    package static let nodeCount = 1_000_000
    /// Traces in one file, such as the systems of a site.
    package static let traceCount = 1000
    /// Bytes of one field of CSV, or of one string of JSON.
    package static let fieldByteCount = 4096
    package static let fieldCount = 256
    /// About 3,000 years, in seconds: also what a time since 1970 may be.
    package static let seconds = 1e11
}
