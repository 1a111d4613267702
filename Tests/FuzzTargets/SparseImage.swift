/// A file image in few bytes: its size, then runs of what is not zero.
///
/// Images are mostly zeros. This keeps the corpus small, and every input means some image: a run
/// that does not fit is cut off.
public enum SparseImage {
    /// Larger images are cut to this size.
    public static let byteCountMaximum = 1 << 20
    /// So many zeros end a run; fewer cost less than a new run.
    private static let gapByteCount = 8

    public static func encode(_ image: [UInt8]) -> [UInt8] {
        var output: [UInt8] = []
        append(image.count, byteCount: 3, to: &output)
        var start = 0
        while let first = image[start...].firstIndex(where: { $0 != 0 }) {
            var last = first
            var index = first
            while index < image.count, index - last <= gapByteCount, index - first < 0xFFFF {
                if image[index] != 0 { last = index }
                index += 1
            }
            append(first, byteCount: 3, to: &output)
            append(last + 1 - first, byteCount: 2, to: &output)
            output += image[first...last]
            start = last + 1
        }
        return output
    }

    public static func decode(_ input: [UInt8]) -> [UInt8] {
        var rest = input[...]
        guard let size = take(&rest, byteCount: 3) else { return [] }
        var image = [UInt8](repeating: 0, count: min(size, byteCountMaximum))
        while let offset = take(&rest, byteCount: 3), let count = take(&rest, byteCount: 2) {
            let run = rest.prefix(min(count, max(0, image.count - offset)))
            image.replaceSubrange(
                min(offset, image.count)..<min(offset, image.count) + run.count, with: run)
            rest = rest.dropFirst(count)
        }
        return image
    }

    private static func append(_ value: Int, byteCount: Int, to output: inout [UInt8]) {
        for index in 0..<byteCount { output.append(UInt8(truncatingIfNeeded: value >> (8 * index))) }
    }

    private static func take(_ rest: inout ArraySlice<UInt8>, byteCount: Int) -> Int? {
        guard rest.count >= byteCount else { return nil }
        defer { rest = rest.dropFirst(byteCount) }
        return rest.prefix(byteCount).reversed().reduce(0) { $0 << 8 | Int($1) }
    }
}
