internal import CheckpointFormat
internal import CheckpointStorage

#if canImport(Glibc)
    internal import Glibc
#endif

/// A screen that is redrawn in place, and the keys that are pressed meanwhile.
///
/// Nothing scrolls away: the lines stay where the cursor was. `close` gives the terminal back as
/// it was found.
struct LiveTerminal: ~Copyable {
    private let output: Output
    private let saved: termios?
    private var drawnCount = 0
    private var drawnWidth = 0

    init(output: Output = .standard) {
        self.output = output
        saved = Self.enterKeyMode()
        output.write(Array("\u{1B}[?25l".utf8))
    }

    deinit {
        output.write(Array("\u{1B}[?25h".utf8))
        output.flush()
        guard var saved else { return }
        // Safe: reads the struct that it is given.
        unsafe _ = tcsetattr(STDIN_FILENO, TCSANOW, &saved)
    }

    /// Keys come one by one and unseen. nil when standard input is no terminal, or another
    /// process group has it: changing it would stop this process.
    private static func enterKeyMode() -> termios? {
        guard isatty(STDIN_FILENO) == 1, tcgetpgrp(STDIN_FILENO) == getpgrp() else { return nil }
        var found = termios()
        // Safe: fills the struct that it is given.
        guard unsafe tcgetattr(STDIN_FILENO, &found) == 0 else { return nil }
        var keys = found
        // ISIG stays: ^C is a signal, as anywhere.
        keys.c_lflag &= ~tcflag_t(ICANON | ECHO)
        // Safe: reads the struct that it is given.
        unsafe _ = tcsetattr(STDIN_FILENO, TCSANOW, &keys)
        return found
    }

    var columnCount: Int { output.columnCount ?? 80 }

    /// Replaces what was drawn last.
    mutating func draw(_ lines: [StyledText]) {
        let width = columnCount
        var control = ""
        if drawnCount > 0 {
            // After a change of width, it is unknown how the terminal broke the lines.
            control = drawnWidth == width ? "\r\u{1B}[\(drawnCount)A" : "\u{1B}[H\u{1B}[2J"
        }
        output.write(Array(control.utf8))
        for line in lines {
            output.redraw(line)
            output.write([0x0A])
        }
        output.write(Array("\u{1B}[J".utf8))
        drawnCount = lines.count
        drawnWidth = width
    }

    /// Waits so long, or until a signal or the key q comes.
    ///
    /// - Returns: whether q was pressed.
    func wait(nanoseconds: UInt64) -> Bool {
        guard saved != nil else {
            SystemClock.sleep(nanoseconds: nanoseconds)
            return false
        }
        let deadline = SystemClock.monotonicTime + nanoseconds
        while !Interruption.isRequested {
            let now = SystemClock.monotonicTime
            if now >= deadline { return false }
            var waited = pollfd(fd: STDIN_FILENO, events: Int16(POLLIN), revents: 0)
            // Safe: one struct, as the count says.
            let count = unsafe poll(&waited, 1, Int32((deadline - now) / 1_000_000 + 1))
            guard count > 0 else { continue }
            var key: UInt8 = 0
            // Safe: one byte fits.
            let byteCount = unsafe read(STDIN_FILENO, &key, 1)
            if byteCount == 1, key == UInt8(ascii: "q") || key == UInt8(ascii: "Q") { return true }
            // The terminal hung up: there is nobody left to show anything to.
            if byteCount == 0 || waited.revents & Int16(POLLHUP) != 0 { return true }
        }
        return false
    }
}
