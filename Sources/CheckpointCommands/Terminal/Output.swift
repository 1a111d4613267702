internal import CheckpointFormat
internal import CheckpointStorage
internal import Synchronization

#if canImport(Glibc)
    internal import Glibc
#endif

/// Where a tool writes for people and programs.
///
/// A reader that closes the pipe early is no error: what follows is dropped.
final class Output: Sendable {
    static let standard = Output(descriptor: STDOUT_FILENO)
    static let diagnostics = Output(descriptor: STDERR_FILENO)

    private struct State {
        var buffer: [UInt8] = []
        var isBroken = false
        var errorNumber: Int32 = 0
    }

    let descriptor: Int32
    let isTerminal: Bool
    let isColored: Bool
    /// Whether the locale says that the reader understands UTF-8.
    private let isUnicode: Bool
    private let state = Mutex(State())

    init(descriptor: Int32) {
        self.descriptor = descriptor
        isTerminal = isatty(descriptor) == 1
        let hasNoColor = Environment.value("NO_COLOR").map { !$0.isEmpty } ?? false
        isColored = isTerminal && !hasNoColor && Environment.value("TERM") != "dumb"
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].lazy.compactMap(Environment.value)
            .first { !$0.isEmpty }
        isUnicode =
            locale.map {
                $0.uppercased().contains("UTF-8") || $0.uppercased().contains("UTF8")
            } ?? false
    }

    /// Columns to lay out for; nil when the output is not a terminal and nothing is to be cut.
    var columnCount: Int? { isTerminal ? TerminalSize.columnCount(descriptor) ?? 80 : nil }

    /// Lines that are laid out for this output's width.
    func show(_ lines: (_ width: Int?) throws(CheckpointError) -> [StyledText])
        throws(CheckpointError)
    {
        try lines(columnCount).forEach { line($0) }
    }
    func show(_ lines: (_ width: Int?) -> [StyledText]) { lines(columnCount).forEach { line($0) } }

    /// A tool's JSON document.
    func document(_ tool: String, _ members: KeyValuePairs<String, JSONValue>) {
        write(JSONValue.document(tool: tool, members).bytes)
    }

    func line(_ text: StyledText = "") {
        write(Array((fitted(text).rendered(isColored: isColored) + "\n").utf8))
    }

    /// Replaces the terminal's current line.
    func redraw(_ text: StyledText) {
        write(Array("\r\u{1B}[2K\(fitted(text).rendered(isColored: isColored))".utf8))
    }

    /// Bytes as they are: JSON and payloads.
    func write(_ bytes: [UInt8]) {
        state.withLock { state in
            state.buffer += bytes
            if isTerminal || state.buffer.count >= 1 << 16 { flush(&state) }
        }
    }

    func flush() { state.withLock { flush(&$0) } }

    /// The reader has gone away.
    var isBroken: Bool { state.withLock { $0.isBroken } }

    /// errno of a write that failed for another reason than a closed pipe; 0 when none did.
    var errorNumber: Int32 { state.withLock { $0.errorNumber } }

    private func flush(_ state: inout State) {
        defer { state.buffer.removeAll(keepingCapacity: true) }
        if state.isBroken || state.errorNumber != 0 { return }
        var start = 0
        while start < state.buffer.count {
            // Safe: the range is in the buffer.
            let count = unsafe state.buffer.withUnsafeBytes { bytes in
                unsafe Glibc.write(
                    descriptor, bytes.baseAddress.map { unsafe $0 + start }, bytes.count - start)
            }
            if count >= 0 {
                start += count
            } else if errno == EPIPE {
                state.isBroken = true
                return
            } else if errno != EINTR {
                state.errorNumber = errno
                return
            }
        }
    }

    /// Without a UTF-8 locale the drawing characters become ASCII of the same width.
    private func fitted(_ text: StyledText) -> StyledText {
        if isUnicode { return text }
        var result = StyledText()
        for part in text.parts {
            result.append(
                String(part.text.map { Self.plainGlyphs[$0] ?? $0 }), part.style)
        }
        return result
    }

    private static let plainGlyphs: [Character: Character] = [
        "█": "#", "▓": "=", "▒": "~", "░": ".", "·": "-", "…": "~", "—": "-", "→": ">", "×": "x",
        "▁": "_", "▂": ".", "▃": "-", "▄": "~", "▅": "=", "▆": "+", "▇": "*",
        "✔": "+", "✘": "!", "▸": ">", "∅": "-",
    ]
}

/// The process's environment.
enum Environment {
    static func value(_ name: String) -> String? {
        // Safe: getenv returns nil or a C string, which is copied; nothing changes the environment.
        guard let value = unsafe getenv(name) else { return nil }
        return unsafe String(cString: value)
    }
}
