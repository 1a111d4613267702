internal import CPlatformLinux

/// Times, and waiting. In a simulation, the simulated ones.
public enum SystemClock {
    /// Nanoseconds since 1970-01-01 UTC.
    public static var wallTime: UInt64 {
        CurrentScheduler.value.map { simulationStart + $0.monotonicTime } ?? pccp_wall_time()
    }

    /// Nanoseconds since an arbitrary start; never goes back.
    public static var monotonicTime: UInt64 {
        CurrentScheduler.value?.monotonicTime ?? pccp_monotonic_time()
    }

    public static func sleep(nanoseconds: UInt64) {
        guard let scheduler = CurrentScheduler.value else { return pccp_sleep(nanoseconds) }
        scheduler.sleep(nanoseconds: nanoseconds)
    }

    /// 2023-11-14, where simulated clocks begin.
    private static let simulationStart: UInt64 = 1_700_000_000_000_000_000
}
