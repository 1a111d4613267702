/// A file image in few bytes: its size, then runs of what is not zero, each with its offset and
/// its count. A count with the highest bit is of one byte that repeats.
///
/// Images are mostly zeros. This keeps the corpus small, and every input means some image: a run
/// that does not fit is cut off.
public enum SparseImage {
    /// Larger images are cut to this size.
    public static let byteCountMaximum = 1 << 20
    /// So many zeros end a run; fewer cost less than a new run.
    private static let gapByteCount = 8
    private static let repeatFlag = 0x8000

    public static func encode(_ image: [UInt8]) -> [UInt8] {
        var output: [UInt8] = []
        append(image.count, byteCount: 3, to: &output)
        var start = 0
        while let first = image[start...].firstIndex(where: { $0 != 0 }) {
            let limit = min(image.count, first + repeatFlag - 1)
            let equalEnd = image[first..<limit].firstIndex { $0 != image[first] } ?? limit
            let isRepeat = equalEnd - first > gapByteCount
            let end = isRepeat ? equalEnd : runEnd(image, first, limit)
            append(first, byteCount: 3, to: &output)
            append((isRepeat ? repeatFlag : 0) + end - first, byteCount: 2, to: &output)
            output += isRepeat ? [image[first]] : image[first..<end]
            start = end
        }
        return output
    }

    /// Behind the last byte before a row of zeros, or of one byte.
    private static func runEnd(_ image: [UInt8], _ first: Int, _ limit: Int) -> Int {
        var rowStart = first
        for index in first + 1..<limit {
            if image[index] != image[rowStart] { rowStart = index }
            if index - rowStart >= gapByteCount { return rowStart }
        }
        return image[rowStart] == 0 ? rowStart : limit
    }

    public static func decode(_ input: [UInt8]) -> [UInt8] {
        var rest = input[...]
        guard let size = take(&rest, byteCount: 3) else { return [] }
        var image = [UInt8](repeating: 0, count: min(size, byteCountMaximum))
        while let offset = take(&rest, byteCount: 3), let mark = take(&rest, byteCount: 2) {
            let count = mark & (repeatFlag - 1)
            let isRepeat = mark & repeatFlag != 0
            let stored = rest.prefix(isRepeat ? 1 : count)
            rest = rest.dropFirst(stored.count)
            let run = isRepeat ? stored.flatMap { repeatElement($0, count: count) } : Array(stored)
            let start = min(offset, image.count)
            let fitting = run.prefix(image.count - start)
            image.replaceSubrange(start..<start + fitting.count, with: fitting)
        }
        return image
    }

    private static func append(_ value: Int, byteCount: Int, to output: inout [UInt8]) {
        for index in 0..<byteCount {
            output.append(UInt8(truncatingIfNeeded: value >> (8 * index)))
        }
    }

    private static func take(_ rest: inout ArraySlice<UInt8>, byteCount: Int) -> Int? {
        guard rest.count >= byteCount else { return nil }
        defer { rest = rest.dropFirst(byteCount) }
        return rest.prefix(byteCount).reversed().reduce(0) { $0 << 8 | Int($1) }
    }
}
