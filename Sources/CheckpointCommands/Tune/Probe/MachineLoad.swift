internal import CheckpointStorage

#if canImport(Glibc)
    internal import Glibc
#endif

/// What the processors do for others while something is measured: proc_stat(5).
struct MachineLoad {
    /// A part of one processor that a quiet machine takes for itself.
    private static let quietShare = 0.15

    private let beganTime = SystemClock.monotonicTime
    private let ownTime = ThisProcess.cpuTime
    private let busyTicks = MachineLoad.busyTicks

    /// How many processors others kept busy since; nil where the kernel does not say.
    var otherProcessorCount: Double? {
        guard let before = busyTicks, let after = Self.busyTicks, after >= before else {
            return nil
        }
        let busy = Double(after - before) / Double(sysconf(Int32(_SC_CLK_TCK)))
        let own = Double(ThisProcess.cpuTime - ownTime) / 1e9
        let elapsed = Double(SystemClock.monotonicTime - beganTime) / 1e9
        return elapsed > 0 ? max(0, busy - own) / elapsed : nil
    }

    var notes: [String] {
        guard let count = otherProcessorCount, count > Self.quietShare else { return [] }
        return [
            "the machine was busy: others used \(Figure.decimal(count, 1)) of "
                + "\(Machine.processorCount) processors during the probe, so that the profile is "
                + "that of a busy machine"
        ]
    }

    /// Time of all processors in everything but idle and waiting for I/O.
    private static var busyTicks: UInt64? {
        let line = Machine.text("/proc/stat")?.split(separator: "\n").first
        let fields = line?.split(separator: " ").dropFirst().compactMap { UInt64($0) } ?? []
        // user nice system idle iowait irq softirq steal
        guard fields.count >= 8 else { return nil }
        return fields[0] + fields[1] + fields[2] + fields[5] + fields[6] + fields[7]
    }
}
