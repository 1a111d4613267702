import CheckpointDevice
import CheckpointFormat
import CheckpointStorage
import FakeDevices
import StorageFaults
import Testing

/// What the writer and the reader rely on when a copy fails after its call has returned.
@Suite(.serialized) struct DeviceErrorTests {
    /// A driver reports such an error to the next event of the stream. It must be that of the same
    /// copies, though other threads copy at the same time: or somebody takes garbage for the bytes.
    @Test func anErrorIsReportedToWhoeverCopied() throws {
        try FakeDevices.use { devices in
            FakeDevices.delay(microseconds: 0...0)
            let device = try devices.open(devices[0].name)
            let source = devices[0].memory([UInt8](repeating: 7, count: 4096))
            let isOver = Monitor(false)
            let counts = Monitor((garbage: 0, errors: 0))
            let copiers = try (0..<3).map { number in
                try WorkerThread(name: "copier-\(number)") {
                    let target = AlignedBuffer(byteCount: 4096)
                    while !isOver.withLock({ $0 }) {
                        target.fillWithZeros(0..<4096)
                        let isGood = Self.copy(source, to: target, by: device)
                        let hasCome = target.array(0..<4096).allSatisfy { $0 == 7 }
                        counts.withLock { counts in
                            if isGood, !hasCome { counts.garbage += 1 }
                            if !isGood { counts.errors += 1 }
                        }
                        counts.wakeAll()
                    }
                }
            }
            let marker = try WorkerThread(name: "marker") {
                while !isOver.withLock({ $0 }) { try? device.mark().wait() }
            }
            for _ in 0..<200 {
                let before = counts.withLock { $0.errors }
                FakeDevices.fail("copy", error: 2, after: 3)
                // With a mistake it may never show.
                counts.wait(deadline: SystemClock.monotonicTime + 50_000_000) {
                    $0.errors > before
                }
            }
            isOver.withLock { $0 = true }
            for thread in copiers + [marker] { thread.join() }
            #expect(counts.withLock { $0.garbage } == 0)
            #expect(counts.withLock { $0.errors } == 200)
        }
    }

    /// - Returns: whether the device reports that the bytes have come.
    private static func copy(
        _ source: FakeMemory, to target: AlignedBuffer, by device: any Device
    ) -> Bool {
        // Safe: both sides stay until the event has come.
        let copy = unsafe DeviceCopy(
            host: target.baseAddress, address: source.address, byteCount: source.byteCount)
        do throws(CheckpointError) {
            try device.copyToHost([copy]).wait()
            return true
        } catch {
            return false
        }
    }
}
