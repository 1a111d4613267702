internal import CheckpointFormat

extension SafetensorsManifest {
    /// Where the bytes of one of its tensors are in the payload.
    func payloadRange(of tensor: Tensor) -> Range<UInt64> {
        dataOffset + tensor.dataRange.lowerBound..<dataOffset + tensor.dataRange.upperBound
    }
}

extension SlotHeader {
    /// The chunks that hold `range` of the payload.
    func chunks(of range: Range<UInt64>) -> Range<Int> {
        if range.isEmpty { return 0..<0 }
        let size = UInt64(chunkByteCount)
        return Int(range.lowerBound / size)..<Int((range.upperBound - 1) / size + 1)
    }
}

extension RandomAccessCollection {
    /// The elements that overlap `range`, of those that ascend and do not overlap each other.
    func overlapping(
        _ range: Range<UInt64>, by elementRange: (Element) -> Range<UInt64>
    ) -> SubSequence {
        var (low, high) = (startIndex, endIndex)
        while low < high {
            let middle = index(low, offsetBy: distance(from: low, to: high) / 2)
            if elementRange(self[middle]).upperBound <= range.lowerBound {
                low = index(after: middle)
            } else {
                high = middle
            }
        }
        return self[low...].prefix { elementRange($0).lowerBound < range.upperBound }
    }
}
