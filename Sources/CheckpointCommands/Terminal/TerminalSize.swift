#if canImport(Glibc)
    internal import Glibc
#endif

/// How large a terminal is.
enum TerminalSize {
    /// ioctl(2) with TIOCGWINSZ: its columns; nil when `descriptor` is no terminal, or it does not
    /// say.
    static func columnCount(_ descriptor: Int32) -> Int? {
        var size = winsize()
        // Safe: fills the struct that it is given.
        let result = unsafe ioctl(descriptor, UInt(TIOCGWINSZ), &size)
        return result == 0 && size.ws_col > 0 ? Int(size.ws_col) : nil
    }
}
