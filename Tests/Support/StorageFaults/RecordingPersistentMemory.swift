package import CheckpointFormat
package import CheckpointStorage

/// A recording medium that the processor writes itself: each write is durable when it returns, and
/// until then any of its eight-byte stores may be.
package final class RecordingPersistentMemory: ByteAddressableStorage {
    package let medium: RecordingStorage
    /// False plants a missing fence.
    private let fences: Bool

    package init(contents: [UInt8], fences: Bool = true) {
        medium = RecordingStorage(contents: contents)
        self.fences = fences
    }

    package var path: String { medium.path }
    package var kind: StorageKind { .persistentMemory }
    package var byteCount: UInt64 { medium.byteCount }

    package func read(
        into buffer: AlignedBuffer, _ range: Range<Int>, at offset: UInt64
    ) throws(StorageError) {
        try medium.read(into: buffer, range, at: offset)
    }

    package func write(
        _ buffer: AlignedBuffer, _ range: Range<Int>, at offset: UInt64
    ) throws(StorageError) {
        medium.observe()
        let write = medium.begin(buffer, range, at: offset)
        try medium.end(write)
        if fences { medium.fence(write.index) }
    }

    @unsafe package func withCopyTarget<Result>(
        at offset: UInt64, byteCount: Int, _ body: (CopyTarget) -> Result
    ) throws(StorageError) -> Result {
        let buffer = AlignedBuffer(byteCount: byteCount)
        // Safe: the buffer lives through the call and has as many bytes.
        let result = unsafe body(CopyTarget(start: buffer.baseAddress, byteCount: byteCount))
        try write(buffer, 0..<byteCount, at: offset)
        return result
    }

    /// Nothing is left to do when the last write has returned.
    package func flush() throws(StorageError) { medium.observe() }

    package func tryLock(_ byte: LockByte, exclusive: Bool) throws(StorageError) -> Bool {
        try medium.tryLock(byte, exclusive: exclusive)
    }

    package func unlock(_ byte: LockByte) throws(StorageError) { try medium.unlock(byte) }
}
