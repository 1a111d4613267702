internal import CPlatformLinux

#if canImport(Glibc)
    internal import Glibc
#endif

/// What the kernel says of this process.
public enum ThisProcess {
    public static var id: UInt32 { UInt32(bitPattern: getpid()) }
    /// User and system CPU time in nanoseconds.
    public static var cpuTime: UInt64 { pccp_cpu_time() }
    /// Processors that it may run on.
    public static var processorCount: Int { Int(pccp_processor_count()) }
    public static var residentByteCount: UInt64 { pccp_resident_byte_count() }
    public static var peakResidentByteCount: UInt64 { pccp_peak_resident_byte_count() }
}
