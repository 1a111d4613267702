/// Writes of one thread that continue while the thread does something else.
///
/// A queue belongs to one thread. It holds every buffer until that buffer's completion was handed
/// out, so nobody frees or fills memory that a device still reads.
public protocol WriteQueue: AnyObject {
    /// How many writes may be under way at once.
    var depth: Int { get }
    /// Writes that were submitted, and whose completions were not handed out yet.
    var pendingCount: Int { get }
    /// What statistics tell of the queue, such as what memory is registered; nil for nothing.
    var detail: String? { get }

    /// Begins a write of `range` of `buffer`; `pendingCount` must be below `depth`. The buffer must
    /// not change until the completion with this tag was handed out.
    func submit(_ buffer: AlignedBuffer, _ range: Range<Int>, at offset: UInt64, tag: Int)

    /// Waits until some write has ended, in any order; `pendingCount` must be above 0.
    func waitForOne() -> WriteCompletion
}

/// How one write of a `WriteQueue` ended.
public struct WriteCompletion: Sendable {
    public let tag: Int
    /// nil when all of the range was written.
    public let error: StorageError?
    /// The system does not report how the write ends, so it may still be in progress: this process
    /// may use neither the buffer nor that part of the medium again.
    public let isUnresolved: Bool

    public init(tag: Int, error: StorageError?, isUnresolved: Bool = false) {
        self.tag = tag
        self.error = error
        self.isUnresolved = isUnresolved
    }
}

extension WriteQueue {
    public var detail: String? { nil }
}

/// The queue of a medium whose writes block: each is over when `submit` returns.
public final class BlockingWriteQueue: WriteQueue {
    public let depth = 1
    private let storage: any Storage
    private var completion: WriteCompletion?

    public init(_ storage: any Storage) { self.storage = storage }

    public var pendingCount: Int { completion == nil ? 0 : 1 }

    public func submit(
        _ buffer: AlignedBuffer, _ range: Range<Int>, at offset: UInt64, tag: Int
    ) {
        precondition(completion == nil, "the last completion was handed out")
        do throws(StorageError) {
            try storage.write(buffer, range, at: offset)
            completion = WriteCompletion(tag: tag, error: nil)
        } catch {
            completion = WriteCompletion(tag: tag, error: error)
        }
    }

    public func waitForOne() -> WriteCompletion {
        guard let done = completion else { preconditionFailure("a write is pending") }
        completion = nil
        return done
    }
}
