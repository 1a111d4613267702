internal import CPlatformLinux
public import CheckpointFormat

/// What the kernel says of the machine.
public enum ThisMachine {
    /// Identifies this boot; zero where the kernel does not say.
    public static let bootID: Identifier128 = {
        var bytes = [UInt8](repeating: 0, count: Identifier128.byteCount)
        // Safe: fills exactly 16 bytes.
        unsafe bytes.withUnsafeMutableBufferPointer { unsafe pccp_boot_id($0.baseAddress) }
        return Identifier128(bytes: bytes)
    }()

    /// kill(2) with signal 0: whether there is a process of this number, perhaps another user's.
    public static func hasProcess(_ processID: UInt32) -> Bool { pccp_process_exists(processID) }
}
