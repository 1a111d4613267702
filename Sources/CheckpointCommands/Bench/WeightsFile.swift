internal import CheckpointFormat
internal import CheckpointStorage
internal import CheckpointWriter

/// A `.safetensors` file in memory, ready to be checkpointed.
struct WeightsFile {
    let path: String
    let tensorCount: Int
    /// Element types by the bytes that they take, such as `F32, BF16`.
    let elementTypes: String
    let payload: CheckpointPayload
    /// Keeps the payload's memory.
    private let content: AlignedBuffer

    /// - Throws: what the system says of the path; `invalidArgument` for what is no safetensors
    ///   file.
    init(path: String) throws(CheckpointError) {
        self.path = path
        let (content, byteCount) = try Self.read(path)
        let manifest: SafetensorsManifest
        do throws(FormatError) {
            let head = content.array(0..<min(8, byteCount))
            let dataOffset = try SafetensorsManifest.dataOffset(
                decoding: head, payloadByteCount: UInt64(byteCount))
            manifest = try SafetensorsManifest(
                decoding: content.array(0..<Int(dataOffset)), payloadByteCount: UInt64(byteCount))
        } catch {
            throw CheckpointError(
                .invalidArgument, "\(path): \(error); --weights takes a .safetensors file")
        }
        var tensors: [(description: TensorDescription, memory: CheckpointPayload.Region)] = []
        var byteCounts: [String: UInt64] = [:]
        for tensor in manifest.tensors {
            // Safe: the manifest's ranges fill the file's bytes exactly; `content` keeps them.
            let memory = unsafe UnsafeRawBufferPointer(
                start: content.baseAddress + Int(manifest.dataOffset + tensor.dataRange.lowerBound),
                count: tensor.dataRange.count)
            let region = unsafe CheckpointPayload.Region(
                memory, elementByteCount: tensor.elementType.planeWidth)
            let description = TensorDescription(
                name: tensor.name, elementType: tensor.elementType, shape: tensor.shape)
            tensors.append((description, region))
            byteCounts[tensor.elementType.name, default: 0] += UInt64(tensor.dataRange.count)
        }
        payload = try CheckpointPayload(tensors: tensors, metadata: [])
        tensorCount = tensors.count
        elementTypes = byteCounts.sorted { ($1.value, $0.key) < ($0.value, $1.key) }
            .map(\.key).joined(separator: ", ")
        self.content = content
    }

    private static func read(
        _ path: String
    ) throws(CheckpointError) -> (content: AlignedBuffer, byteCount: Int) {
        let file = try FileStorage.opened(path, .read, mode: .buffered)
        let byteCount = Int(file.byteCount)
        if let available = Machine.availableMemoryByteCount, available / 3 < UInt64(byteCount) {
            throw CheckpointError(
                .outOfMemory,
                "\(path): the codec benchmark needs three times its \(byteCount) bytes of memory, "
                    + "but \(Quantity.bytes(available)) are available; choose smaller --weights")
        }
        let content = AlignedBuffer(byteCount: byteCount)
        try withCheckpointErrors { () throws(StorageError) in
            try file.read(into: content, 0..<byteCount, at: 0)
        }
        return (content, byteCount)
    }
}
