/// The shapes of drawings. Colours are classes: the style of the document gives each theme its own.
enum SVG {
    static func rect(_ kind: String, x: Int, y: Int, width: Int, height: Int) -> HTMLText {
        """
        <rect class="\(kind)" x="\(x)" y="\(y)" width="\(width)" height="\(height)"/>
        """
    }

    /// - Parameter title: what a pointer that rests on the shape shows.
    static func rect(
        _ kind: String, x: Double, y: Double, width: Double, height: Double, title: String? = nil
    ) -> HTMLText {
        """
        <rect class="\(kind)" x="\(place(x))" y="\(place(y))" width="\(place(width))" \
        height="\(place(height))">\(tooltip(title))</rect>
        """
    }

    static func text(x: Int, y: Int, _ words: String) -> HTMLText {
        """
        <text x="\(x)" y="\(y)">\(words)</text>
        """
    }

    /// - Parameter kind: classes; `m` is centred at `x`, and `e` ends there.
    static func text(_ kind: String, x: Double, y: Double, _ words: String) -> HTMLText {
        """
        <text class="\(kind)" x="\(place(x))" y="\(place(y))">\(words)</text>
        """
    }

    static func line(_ kind: String, _ points: [(x: Double, y: Double)]) -> HTMLText {
        let path = points.enumerated().map { index, point in
            "\(index == 0 ? "M" : "L")\(place(point.x)) \(place(point.y))"
        }
        return """
            <path class="\(kind)" d="\(path.joined(separator: " "))"/>
            """
    }

    static func dot(
        _ kind: String, x: Double, y: Double, radius: Double = 4, title: String? = nil
    ) -> HTMLText {
        """
        <circle class="\(kind)" cx="\(place(x))" cy="\(place(y))" r="\(place(radius))">\
        \(tooltip(title))</circle>
        """
    }

    private static func tooltip(_ title: String?) -> HTMLText {
        title.map { "<title>\($0)</title>" } ?? ""
    }

    /// A hundredth of a pixel is more than can be seen.
    private static func place(_ value: Double) -> String { Figure.decimal(value, 2) }
}
