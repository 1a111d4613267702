#if canImport(Glibc)
    internal import Glibc
#endif

/// The rate of a device by the size of writes, how many are under way, and other load.
///
/// Between measured points it is linear: in the number of writes, in the logarithm of their size,
/// and in the other load. Outside of them it is the nearest point, with two exceptions: fewer
/// writes than measured reach a proportional part, and other load above what was measured is
/// taken off byte for byte.
struct DeviceCurve {
    private struct Line {
        let size: Double
        let points: [(depth: Double, rate: Double)]
    }

    /// By other load, in rising order; in each, by size.
    private let levels: [(other: Double, lines: [Line])]

    /// - Parameter machineCount: the rate is that of the slowest of so many.
    init(_ points: [MachineProfile.DevicePoint], machineCount: Int) {
        let byLoad = Dictionary(grouping: points, by: \.otherBytesPerSecond)
        levels = byLoad.sorted { $0.key < $1.key }.map { other, points in
            let bySize = Dictionary(grouping: points, by: \.writeByteCount)
            let lines = bySize.sorted { $0.key < $1.key }.map { size, points in
                let byDepth = Dictionary(grouping: points, by: \.queueDepth)
                return Line(
                    size: Double(size),
                    points: byDepth.sorted { $0.key < $1.key }.map { depth, points in
                        let all = MeasuredValues(points.flatMap(\.bytesPerSecond.samples))
                        return (Double(depth), all.slowestRate(of: machineCount))
                    })
            }
            return (other, lines)
        }
    }

    /// Zero when the other load takes all of it.
    func bytesPerSecond(
        writeByteCount: Double, queueDepth: Double, otherBytesPerSecond other: Double
    ) -> Double {
        let points = levels.map { level in
            (
                level.other,
                Self.interpolate(
                    level.lines.map { line in
                        (log2(line.size), Self.rate(line, queueDepth: queueDepth))
                    }, at: log2(writeByteCount))
            )
        }
        guard let last = points.last else { return 0 }
        return max(0, Self.interpolate(points, at: other) - max(0, other - last.0))
    }

    private static func rate(_ line: Line, queueDepth: Double) -> Double {
        guard let first = line.points.first else { return 0 }
        guard queueDepth >= first.depth else { return first.rate * queueDepth / first.depth }
        return interpolate(line.points.map { ($0.depth, $0.rate) }, at: queueDepth)
    }

    static func interpolate(_ points: [(Double, Double)], at place: Double) -> Double {
        guard let above = points.firstIndex(where: { $0.0 >= place }) else {
            return points.last?.1 ?? 0
        }
        guard above > 0, points[above].0 > place else { return points[above].1 }
        let (low, high) = (points[above - 1], points[above])
        return low.1 + (high.1 - low.1) * (place - low.0) / (high.0 - low.0)
    }
}
