/// One chart with two axes: marks are added in the units of the axes.
struct PlotPanel {
    enum Key {
        case line, dot, area
    }

    /// For the class of the group, by which a program finds the panel.
    let name: String
    let title: String
    let x: Axis
    let y: Axis
    private var marks: [HTMLText] = []
    private var keys: [(Key, kind: String, label: String)] = []

    init(_ name: String, title: String, x: Axis, y: Axis) {
        self.name = name
        self.title = title
        self.x = x
        self.y = y
    }

    /// What the legend shows.
    mutating func addKey(_ key: Key, _ kind: String, _ label: String) {
        keys.append((key, kind, label))
    }

    mutating func addLine(_ kind: String, _ points: [(x: Double, y: Double)]) {
        guard points.count > 1 else { return }
        marks.append(
            SVG.line(kind, points.map { (x.clippedPosition($0.x), y.clippedPosition($0.y)) }))
    }

    mutating func addDot(
        _ kind: String, _ point: (x: Double, y: Double), radius: Double = 4, title: String
    ) {
        marks.append(
            SVG.dot(
                kind, x: x.clippedPosition(point.x), y: y.clippedPosition(point.y),
                radius: radius, title: title))
    }

    /// An area over the whole height.
    mutating func addBand(_ kind: String, _ range: ClosedRange<Double>, title: String) {
        // A range of one value is visible too.
        let start = x.clippedPosition(range.lowerBound)
        let width = max(2, x.clippedPosition(range.upperBound) - start)
        marks.append(
            SVG.rect(
                kind, x: start, y: y.pixels.end, width: width,
                height: y.pixels.start - y.pixels.end, title: title))
    }

    /// The room above the frame is for the title and the legend.
    var svg: HTMLText {
        let (left, top) = (x.pixels.start, y.pixels.end)
        let (width, height) = (x.pixels.end - left, y.pixels.start - top)
        let bottom = top + height
        let columns = x.ticks.map { tick -> HTMLText in
            let place = x.position(tick.value)
            return """
                \(SVG.line("grid", [(place, top), (place, bottom)]))\
                \(SVG.text("t m x-tick", x: place, y: bottom + 17, tick.label))
                """
        }
        let rows = y.ticks.map { tick -> HTMLText in
            let place = y.position(tick.value)
            return """
                \(SVG.line("grid", [(left, place), (left + width, place)]))\
                \(SVG.text("t e y-tick", x: left - 8, y: place + 4, tick.label))
                """
        }
        return """
            <g class="\(name)"><clipPath id="clip-\(name)">\
            \(SVG.rect("", x: left, y: top, width: width, height: height))</clipPath>\
            \(SVG.text("h", x: left, y: top - 38, title))\(legend)\(columns)\(rows)\
            \(SVG.text("t m", x: left + width / 2, y: bottom + 38, x.label))\
            <text class="t m" transform="translate(\(Figure.decimal(left - 58, 2)) \
            \(Figure.decimal(top + height / 2, 2))) rotate(-90)">\(y.label)</text>\
            <g clip-path="url(#clip-\(name))">\(marks)</g></g>

            """
    }

    private var legend: HTMLText {
        PlotLegend(x: x.pixels.start, y: y.pixels.end - 14, keys: keys).svg
    }
}

/// What the marks of a chart mean, side by side.
struct PlotLegend {
    /// No font is measured: letters are at most about as wide as this.
    private static let letterWidth = 6.3
    private static let keyWidth = 24.0

    let x: Double
    let y: Double
    let keys: [(PlotPanel.Key, kind: String, label: String)]

    var svg: HTMLText {
        var left = x
        return keys.reduce(into: HTMLText("")) { html, entry in
            let (key, kind, label) = entry
            switch key {
            case .line: html += SVG.line(kind, [(left, y - 4), (left + 18, y - 4)])
            case .dot: html += SVG.dot(kind, x: left + 9, y: y - 4)
            case .area:
                html += SVG.rect(kind, x: left, y: y - 9, width: 18, height: 10)
            }
            html += SVG.text("t", x: left + Self.keyWidth, y: y, label)
            left += Self.keyWidth + Double(label.count) * Self.letterWidth + 18
        }
    }
}
