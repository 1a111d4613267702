internal import CheckpointFormat
internal import CheckpointStorage
internal import CheckpointWriter

#if canImport(Glibc)
    internal import Glibc
#endif

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
        func failure(_ operation: String) -> CheckpointError {
            CheckpointError(
                StorageError(operation: operation, path: path, osErrorNumber: errno))
        }
        // Safe: the stream is used by this function alone and closed once.
        guard let file = unsafe fopen(path, "re") else { throw failure("open") }
        // Safe: as above.
        defer { unsafe _ = fclose(file) }
        guard unsafe fseek(file, 0, SEEK_END) == 0 else { throw failure("seek") }
        let byteCount = unsafe ftell(file)
        guard byteCount >= 0, unsafe fseek(file, 0, SEEK_SET) == 0 else { throw failure("seek") }
        if let available = Machine.availableMemoryByteCount, available / 3 < UInt64(byteCount) {
            throw CheckpointError(
                .outOfMemory,
                "\(path): the codec benchmark needs three times its \(byteCount) bytes of memory, "
                    + "but \(Quantity.bytes(available)) are available; choose smaller --weights")
        }
        let content = AlignedBuffer(byteCount: byteCount)
        // Safe: the buffer has as many bytes.
        let count = unsafe fread(content.baseAddress, 1, byteCount, file)
        guard count == byteCount else { throw failure("read") }
        return (content, byteCount)
    }
}
