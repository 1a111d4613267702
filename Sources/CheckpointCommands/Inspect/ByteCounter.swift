internal import Synchronization

/// How much several threads have done together.
final class ByteCounter: Sendable {
    // Added to and read by any thread; orders nothing else.
    private let count = Atomic<UInt64>(0)

    func add(_ byteCount: Int) -> UInt64 {
        count.wrappingAdd(UInt64(byteCount), ordering: .relaxed).newValue
    }
}
