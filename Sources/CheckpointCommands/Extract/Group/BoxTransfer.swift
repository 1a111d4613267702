internal import CheckpointFormat

/// A box whose bytes go from the payload of one part to a file.
///
/// Pure: it says which bytes of a piece of the payload go where.
struct BoxTransfer: Sendable {
    private struct Axis {
        let count: UInt64
        let sourceStride: UInt64
        let targetStride: UInt64

        /// The indices whose bytes, `span` from the first to the last, reach into `window`.
        func indices(
            from source: UInt64, span: UInt64, in window: Range<UInt64>
        ) -> Range<UInt64> {
            guard source < window.upperBound else { return 0..<0 }
            if sourceStride == 0 { return source + span > window.lowerBound ? 0..<count : 0..<0 }
            let isBefore = source + span <= window.lowerBound
            let first = isBefore ? (window.lowerBound - source - span) / sourceStride + 1 : 0
            let end = min(count, (window.upperBound - 1 - source) / sourceStride + 1)
            return first < end ? first..<end : 0..<0
        }
    }

    /// Of the payload: from the first of its bytes to the last.
    let sourceRange: Range<UInt64>
    private let targetOffset: UInt64
    /// Outermost first.
    private let axes: [Axis]
    /// Bytes from the first to the last that the axes from each index on reach.
    private let spans: [UInt64]
    /// Successive bytes in payload and file.
    private let runByteCount: UInt64

    /// All bytes of a range.
    init(source: Range<UInt64>, targetOffset: UInt64) {
        sourceRange = source
        self.targetOffset = targetOffset
        axes = []
        runByteCount = UInt64(source.count)
        spans = [runByteCount]
    }

    /// The elements of `box`, which has some, out of a region of a tensor.
    ///
    /// - Parameters:
    ///   - targetOffset: where the tensor begins in the file, dense and row-major.
    init(
        _ box: TensorBox, of region: JoinedState.Region, shape: [UInt64],
        elementType: ElementType, targetOffset: UInt64
    ) {
        var run = UInt64(elementType.bitCount / 8)
        var source = region.payloadOffset
        var target = targetOffset
        var axes: [Axis] = []
        let strides = elementType.byteStrides(shape)
        for axis in box.sizes.indices.reversed() {
            source += (box.offsets[axis] - region.box.offsets[axis]) * region.strides[axis]
            target += box.offsets[axis] * strides[axis]
            let count = box.sizes[axis]
            if count == 1 { continue }
            if axes.isEmpty, region.strides[axis] == run, strides[axis] == run {
                run *= count
            } else {
                axes.append(
                    Axis(
                        count: count, sourceStride: region.strides[axis],
                        targetStride: strides[axis]))
            }
        }
        var spans = [run]
        for axis in axes {
            spans.append(spans[spans.count - 1] + (axis.count - 1) * axis.sourceStride)
        }
        self.axes = axes.reversed()
        self.spans = spans.reversed()
        runByteCount = run
        sourceRange = source..<source + self.spans[0]
        self.targetOffset = target
    }

    /// Calls `body` with each run of successive bytes that `window` of the payload holds, and with
    /// where it begins in the file.
    func forEachRun(
        in window: Range<UInt64>,
        _ body: (_ source: Range<UInt64>, _ target: UInt64) throws(CheckpointError) -> Void
    ) throws(CheckpointError) {
        try visit(0, sourceRange.lowerBound, targetOffset, window, body)
    }

    private func visit(
        _ level: Int, _ source: UInt64, _ target: UInt64, _ window: Range<UInt64>,
        _ body: (Range<UInt64>, UInt64) throws(CheckpointError) -> Void
    ) throws(CheckpointError) {
        guard level < axes.count else {
            let run = (source..<source + runByteCount).clamped(to: window)
            if !run.isEmpty { try body(run, target + (run.lowerBound - source)) }
            return
        }
        let axis = axes[level]
        for index in axis.indices(from: source, span: spans[level + 1], in: window) {
            try visit(
                level + 1, source + index * axis.sourceStride, target + index * axis.targetStride,
                window, body)
        }
    }
}
