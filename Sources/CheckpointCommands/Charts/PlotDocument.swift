/// A drawing as a file of its own: an SVG that a browser shows, and that needs nothing else.
struct PlotDocument {
    let title: String
    let subtitle: String
    /// The figures in words, for those who do not see the drawing.
    let description: String
    let width: Int
    let height: Int
    let body: [HTMLText]

    /// What the title and the subtitle take above the body.
    static let headHeight = 76.0
    static let margin = 28.0

    var bytes: [UInt8] { Array(svg.markup.utf8) }

    private var svg: HTMLText {
        """
        <?xml version="1.0" encoding="UTF-8"?>
        <svg xmlns="http://www.w3.org/2000/svg" width="\(width)" height="\(height)" \
        viewBox="0 0 \(width) \(height)" role="img" aria-labelledby="title description">
        <title id="title">\(title)</title>
        <desc id="description">\(description)</desc>
        <style>\(HTMLText(stringLiteral: ChartStyle.css))</style>
        \(SVG.rect("page", x: 0, y: 0, width: width, height: height))
        \(SVG.text("title", x: Self.margin, y: 38, title))
        \(SVG.text("t", x: Self.margin, y: 60, subtitle))
        \(body)</svg>

        """
    }
}
