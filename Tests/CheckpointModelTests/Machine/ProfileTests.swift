import Testing

@testable import CheckpointModel

/// What was measured, and what follows between and outside of it.
@Suite struct ProfileTests {
    @Test func theLargestOfSeveral() {
        let times = MeasuredValues([3, 1, 2])
        #expect(FormulaTests.isNear(times.meanLargest(of: 1), 2), "the mean")
        // The largest of two is 1 in one of nine cases, 2 in three, and 3 in five.
        #expect(FormulaTests.isNear(times.meanLargest(of: 2), 22.0 / 9))
        #expect(FormulaTests.isNear(times.meanLargest(of: 1_000_000), 3))
        var last = 0.0
        for count in 1...50 {
            let value = times.meanLargest(of: count)
            #expect(value > last && value <= 3, "more ranks wait longer")
            last = value
        }
        // 1, 1/2 and 1/4 s for a byte.
        #expect(FormulaTests.isNear(MeasuredValues([1, 2, 4]).slowestRate(of: 1), 12.0 / 7))
        #expect(FormulaTests.isNear(MeasuredValues([1, 2, 4]).slowestRate(of: 1_000_000), 1))
    }

    private static func point(
        _ size: Int, _ depth: Int, _ rate: Double, other: Double = 0
    ) -> MachineProfile.DevicePoint {
        MachineProfile.DevicePoint(
            writeByteCount: size, queueDepth: depth, otherBytesPerSecond: other,
            bytesPerSecond: SampleMachine.same(rate))
    }

    @Test func theDeviceBetweenPoints() {
        let curve = DeviceCurve(
            [
                Self.point(1 << 20, 2, 100), Self.point(1 << 20, 4, 140),
                Self.point(1 << 22, 2, 200), Self.point(1 << 22, 4, 240),
                Self.point(1 << 20, 2, 50, other: 80),
            ], machineCount: 1)
        func rate(_ size: Double, _ depth: Double, other: Double = 0) -> Double {
            curve.bytesPerSecond(
                writeByteCount: size, queueDepth: depth, otherBytesPerSecond: other)
        }
        #expect(FormulaTests.isNear(rate(0x1p20, 2), 100))
        #expect(FormulaTests.isNear(rate(0x1p20, 3), 120), "linear in the depth")
        #expect(FormulaTests.isNear(rate(0x1p20, 64), 140), "not faster than measured")
        #expect(FormulaTests.isNear(rate(0x1p20, 1), 50), "half of the writes, half of the rate")
        #expect(FormulaTests.isNear(rate(0x1p21, 2), 150), "linear in the logarithm of the size")
        #expect(FormulaTests.isNear(rate(0x1p16, 2), 100))
        #expect(FormulaTests.isNear(rate(0x1p28, 4), 240))
        #expect(FormulaTests.isNear(rate(0x1p20, 2, other: 40), 75), "half of the measured load")
        #expect(FormulaTests.isNear(rate(0x1p20, 2, other: 90), 40), "byte for byte beyond it")
        #expect(rate(0x1p20, 2, other: 1e9) == 0)
    }

    /// Every number that makes no sense is refused with its code, and none traps.
    @Test func aBadProfileIsRefused() {
        func code(_ change: (inout MachineProfile) -> Void) -> TuningError.Code? {
            var profile = SampleMachine.profile()
            change(&profile)
            do throws(TuningError) {
                try profile.check()
                return nil
            } catch {
                return error.code
            }
        }
        #expect(code { _ in } == nil)
        #expect(code { $0.processorCount = 0 } == .outOfRange)
        #expect(code { $0.device = [] } == .notMeasured)
        #expect(code { $0.device[0].queueDepth = 0 } == .outOfRange)
        #expect(code { $0.device[0].writeByteCount = 65_537 } == .outOfRange)
        #expect(code { $0.device[0].otherBytesPerSecond = -1 } == .outOfRange)
        #expect(code { $0.flushSeconds = MeasuredValues([]) } == .tooFewSamples)
        #expect(code { $0.digestBytesPerSecond = MeasuredValues([1e9, 1e9]) } == .tooFewSamples)
        for value in [Double.nan, -1, .infinity, -.infinity, 1e300] {
            let bad = MeasuredValues([1, 1, value])
            #expect(code { $0.flushSeconds = bad } == .outOfRange)
            #expect(code { $0.blockSeconds = bad } == .outOfRange)
            #expect(code { $0.commitSeconds = bad } == .outOfRange)
            #expect(code { $0.callSeconds = bad } == .outOfRange)
            #expect(code { $0.memoryBytesPerSecond = bad } == .outOfRange)
            #expect(code { $0.digestBytesPerSecond = bad } == .outOfRange)
            #expect(code { $0.device[0].bytesPerSecond = bad } == .outOfRange)
        }
        let codec = MachineProfile.CodecPoint(
            codec: .zstd, bytesPerSecond: SampleMachine.same(1e9), compressionRatio: 2)
        #expect(code { $0.codecs = [codec] } == nil)
        #expect(code { $0.codecs = [codec, codec] } == .outOfRange)
        #expect(code { $0.codecs = [codec].map { Self.with($0, ratio: 0) } } == .outOfRange)
        #expect(code { $0.codecs = [codec].map { Self.with($0, ratio: .nan) } } == .outOfRange)
    }

    private static func with(
        _ point: MachineProfile.CodecPoint, ratio: Double
    ) -> MachineProfile.CodecPoint {
        var point = point
        point.compressionRatio = ratio
        return point
    }
}
