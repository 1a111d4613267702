internal import CBenchmark
internal import CheckpointStorage

#if canImport(Glibc)
    internal import Glibc
#endif

/// One step of a training loop: a fixed sleep, or a fixed amount of arithmetic on this thread.
struct TrainingStep {
    private static let extent = 192

    let kind: StepKind
    private let milliseconds: Int
    /// Products of two matrices in one busy step.
    private let productCount: Int
    private let matrices: Matrices?

    /// - Parameter milliseconds: what a step takes on an idle machine; the amount of arithmetic
    ///   is measured out once, so that a step that has to share its processor takes longer.
    init(_ kind: StepKind, milliseconds: Int) {
        self.kind = kind
        self.milliseconds = milliseconds
        guard kind == .busy else {
            productCount = 0
            matrices = nil
            return
        }
        let matrices = Matrices(extent: Self.extent)
        var fastest = Double.infinity
        for _ in 0..<max(20, milliseconds / 4) {
            fastest = min(fastest, seconds { matrices.multiply() })
        }
        productCount = max(1, Int((Double(milliseconds) / 1e3 / fastest).rounded()))
        self.matrices = matrices
    }

    func run() {
        if kind == .sleep { usleep(UInt32(milliseconds) * 1000) }
        for _ in 0..<productCount { matrices?.multiply() }
    }
}

private final class Matrices {
    private let extent: Int
    private var product: [Float]
    private let left: [Float]
    private let right: [Float]

    init(extent: Int) {
        self.extent = extent
        product = Array(repeating: 0, count: extent * extent)
        // Small numbers, so that sums over many steps stay finite.
        left = (0..<extent * extent).map { Float($0 % 7) * 1e-6 }
        right = (0..<extent * extent).map { Float($0 % 5) * 1e-6 }
    }

    func multiply() {
        // Safe: all three have extent × extent elements, and the product is not read here.
        unsafe product.withUnsafeMutableBufferPointer { product in
            unsafe left.withUnsafeBufferPointer { left in
                unsafe right.withUnsafeBufferPointer { right in
                    unsafe pccb_multiply(
                        product.baseAddress, left.baseAddress, right.baseAddress, extent)
                }
            }
        }
    }
}
