internal import CheckpointFormat
internal import CheckpointStorage
internal import CheckpointWriter

/// State to be checkpointed: memory that was touched, and looks like the weights of a fresh
/// model, single-precision numbers with a deviation of 0.02.
final class BenchState: Sendable {
    let buffer: AlignedBuffer
    let byteCount: Int

    /// - Parameter byteCount: rounded up to whole blocks.
    init(byteCount: UInt64) {
        let block = UInt64(Limits.blockByteCount)
        self.byteCount = Int((byteCount + block - 1) / block * block)
        buffer = AlignedBuffer(byteCount: self.byteCount)
        // Safe: writes whole numbers inside the buffer.
        let numbers = unsafe UnsafeMutableRawBufferPointer(
            start: buffer.baseAddress, count: self.byteCount
        ).bindMemory(to: Float.self)
        var word: UInt64 = 0x9E37_79B9_7F4A_7C15
        // The sum of four uniform numbers is close to a normal one.
        let scale = Float(0.02 / (65536.0 / 3.0.squareRoot()))
        for index in numbers.indices {
            word = word &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            let mixed = word ^ (word &>> 29)
            let sum =
                (mixed & 0xFFFF) &+ (mixed &>> 16 & 0xFFFF) &+ (mixed &>> 32 & 0xFFFF)
                &+ (mixed &>> 48)
            unsafe numbers[index] = (Float(sum) - 131_070) * scale
        }
    }

    /// All of it as one region.
    var payload: CheckpointPayload { payload(byteCount: byteCount) }

    /// The first bytes of it.
    func payload(byteCount: Int) -> CheckpointPayload {
        CheckpointPayload(opaque: [region(0..<byteCount)])
    }

    /// The same as `count` tensors of about the same size.
    func tensorPayload(count: Int) throws(CheckpointError) -> CheckpointPayload {
        let elementCount = byteCount / 4
        guard let elementType = ElementType(name: "F32") else {
            preconditionFailure("safetensors has F32")
        }
        var tensors: [(description: TensorDescription, memory: CheckpointPayload.Region)] = []
        for index in 0..<count {
            let range = index * elementCount / count..<(index + 1) * elementCount / count
            let description = TensorDescription(
                name: "layers.\(index).weight", elementType: elementType,
                shape: [UInt64(range.count)])
            let memory = region(4 * range.lowerBound..<4 * range.upperBound)
            tensors.append((description, memory))
        }
        return try CheckpointPayload(tensors: tensors, metadata: [])
    }

    private func region(_ range: Range<Int>) -> CheckpointPayload.Region {
        // Safe: the state outlives every checkpoint of the benchmark and is not changed.
        unsafe CheckpointPayload.Region(
            UnsafeRawBufferPointer(
                start: buffer.baseAddress + range.lowerBound, count: range.count),
            elementByteCount: 4)
    }
}
