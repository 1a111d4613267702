internal import CheckpointFormat

/// Repeated measurements of one quantity.
struct Samples: Sendable {
    private(set) var values: [Double]

    init(_ values: [Double] = []) { self.values = values }

    mutating func add(_ value: Double) { values.append(value) }

    var isEmpty: Bool { values.isEmpty }
    var minimum: Double { values.min() ?? .nan }
    var maximum: Double { values.max() ?? .nan }
    var mean: Double { values.reduce(0, +) / Double(values.count) }

    /// The middle value, or the mean of the two middle ones.
    var median: Double {
        guard !values.isEmpty else { return .nan }
        let sorted = values.sorted()
        let middle = sorted.count / 2
        return sorted.count % 2 == 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
    }

    /// Round by round, this figure divided by the other: what a slow minute does to both sides
    /// goes away.
    func ratios(to other: Samples) -> Samples {
        Samples(zip(values, other.values).map { $0 / $1 })
    }

    /// `values` are left out where they would be many.
    func json(withValues: Bool = true) -> JSONValue {
        var members: [JSONValue.Member] = [
            .init(key: "median", value: .decimal(median)),
            .init(key: "minimum", value: .decimal(minimum)),
            .init(key: "maximum", value: .decimal(maximum)),
        ]
        if withValues {
            members.append(.init(key: "values", value: .array(values.map { .decimal($0) })))
        }
        return .object(members)
    }

    var json: JSONValue { json() }
}
