internal import CPlatformLinux
public import CheckpointFormat

#if canImport(Glibc)
    internal import Glibc
#endif

/// Times and facts of this process and machine, for headers and statistics.
public enum SystemClock {
    /// Nanoseconds since 1970-01-01 UTC.
    public static var wallTime: UInt64 {
        CurrentScheduler.value.map { simulationStart + $0.monotonicTime } ?? pccp_wall_time()
    }
    /// Nanoseconds since an arbitrary start; never goes back.
    public static var monotonicTime: UInt64 {
        CurrentScheduler.value?.monotonicTime ?? pccp_monotonic_time()
    }
    /// User and system CPU time of this process in nanoseconds.
    public static var processCPUTime: UInt64 { pccp_cpu_time() }
    /// Processors that this process may run on.
    public static var processorCount: Int { Int(pccp_processor_count()) }
    public static var residentByteCount: UInt64 { pccp_resident_byte_count() }
    public static var peakResidentByteCount: UInt64 { pccp_peak_resident_byte_count() }

    /// kill(2) with signal 0: whether there is a process of this number, perhaps another user's.
    public static func processExists(_ processID: UInt32) -> Bool {
        pccp_process_exists(processID)
    }

    public static func sleep(nanoseconds: UInt64) {
        guard let scheduler = CurrentScheduler.value else { return pccp_sleep(nanoseconds) }
        scheduler.sleep(nanoseconds: nanoseconds)
    }

    /// 2023-11-14, where simulated clocks begin.
    private static let simulationStart: UInt64 = 1_700_000_000_000_000_000

    public static var processID: UInt32 { UInt32(bitPattern: getpid()) }

    /// Columns of the terminal at `descriptor`; nil when it is none or does not say.
    public static func terminalColumnCount(_ descriptor: Int32) -> Int? {
        let count = pccp_terminal_columns(descriptor)
        return count > 0 ? Int(count) : nil
    }

    /// Identifies this boot of the machine; zero where the kernel does not say.
    public static let bootID: Identifier128 = {
        var bytes = [UInt8](repeating: 0, count: Identifier128.byteCount)
        // Safe: fills exactly 16 bytes.
        unsafe bytes.withUnsafeMutableBufferPointer { unsafe pccp_boot_id($0.baseAddress) }
        return Identifier128(bytes: bytes)
    }()
}
