public import CheckpointDevice
internal import CheckpointFormat
internal import CheckpointStorage

/// Where a range of the payload is to be copied to.
// Unchecked: the caller of the read keeps the memory alive and untouched until it returns.
@safe public struct Destination: @unchecked Sendable {
    public let payloadOffset: UInt64
    /// Addresses of a device when there is a stream.
    @unsafe public let buffer: UnsafeMutableRawBufferPointer
    /// Where the memory is on a device: the stream whose work by now may still use it. nil for
    /// memory of the host.
    public let stream: DeviceStream?

    /// Asks for `buffer.count` bytes from `payloadOffset`.
    ///
    /// The memory must stay valid, and must not be used otherwise, until the read returns.
    @unsafe public init(
        payloadOffset: UInt64, buffer: UnsafeMutableRawBufferPointer, stream: DeviceStream? = nil
    ) {
        self.payloadOffset = payloadOffset
        // Safe: the caller vouches for the memory of a destination.
        unsafe self.buffer = buffer
        self.stream = stream
    }

    // Safe: a count is read, not memory.
    var byteCount: Int { unsafe buffer.count }

    var range: Range<UInt64>? {
        let (end, overflow) = payloadOffset.addingReportingOverflow(UInt64(byteCount))
        return overflow ? nil : payloadOffset..<end
    }
}

/// The copies of one read: from the buffers of verified chunks to where the bytes were asked for.
///
/// A device copies its part itself, from a buffer that is registered with it. A thread of the read
/// waits for that before it uses the buffer again, while the other threads read and verify.
final class DestinationLoading: Sendable {
    private let devices: DeviceTable

    /// - Throws: `unsupported`, `accelerator`; `invalidArgument` while a stream records a graph.
    init(
        _ destinations: [Destination], _ runtime: any DeviceRuntime
    ) throws(CheckpointError) {
        devices = DeviceTable(runtime: runtime)
        // An empty destination is on a device in name only.
        let filled = destinations.filter { $0.byteCount > 0 }
        for stream in Set(filled.compactMap(\.stream)) {
            let device = try devices.device(stream.device)
            try device.follow(device.record(stream.handle))
        }
    }

    func close() { devices.close() }

    func copy(
        _ chunk: VerifiedChunk, to destinations: [Destination]
    ) throws(CheckpointError) {
        var copies: [DeviceName: [DeviceCopy]] = [:]
        for destination in destinations {
            // Safe: the caller vouches for the memory of a destination.
            let part = unsafe Part(chunk, destination)
            if let name = destination.stream?.device {
                // Safe: the addresses are only kept.
                unsafe copies[name, default: []].append(
                    DeviceCopy(
                        host: part.source,
                        address: UInt64(UInt(bitPattern: part.target.baseAddress)),
                        byteCount: part.target.count))
            } else {
                // Safe: both have one size, and the destination is this read's alone.
                unsafe part.target.stream(
                    from: UnsafeRawBufferPointer(start: part.source, count: part.target.count))
            }
        }
        for (name, parts) in copies { try copy(parts, from: chunk.restored, to: name) }
    }

    private func copy(
        _ copies: [DeviceCopy], from buffer: AlignedBuffer, to name: DeviceName
    ) throws(CheckpointError) {
        let device = try devices.device(name)
        // Safe: the region is the buffer's. Without it the copies are slower.
        _ = unsafe devices.pin(
            UnsafeMutableRawBufferPointer(start: buffer.baseAddress, count: buffer.byteCount),
            of: buffer, for: device)
        try device.copyToDevice(copies).wait()
    }

    /// What a chunk and a destination have in common.
    @safe private struct Part {
        @unsafe let source: UnsafeMutableRawPointer
        @unsafe let target: UnsafeMutableRawBufferPointer

        @unsafe init(_ chunk: VerifiedChunk, _ destination: Destination) {
            let chunkEnd = chunk.payloadOffset + UInt64(chunk.entry.rawByteCount)
            let start = max(chunk.payloadOffset, destination.payloadOffset)
            let end = min(chunkEnd, destination.payloadOffset + UInt64(destination.byteCount))
            let target = Int(start - destination.payloadOffset)
            let count = Int(end - start)
            // Safe: the range lies in both.
            unsafe source = chunk.restored.baseAddress + Int(start - chunk.payloadOffset)
            unsafe self.target = UnsafeMutableRawBufferPointer(
                rebasing: destination.buffer[target..<target + count])
        }
    }
}
