/// How drawings look, in the light and in the dark.
enum ChartStyle {
    /// The colours of all pages and drawings.
    static let palette = """
        :root{color-scheme:light dark;--ink:#1b1f24;--dim:#59636e;--line:#d8dde3;--page:#fff;
        --soft:#f5f7f9;--accent:#0b62c4;--bad:#b42318;--warn:#8a5a00}
        @media(prefers-color-scheme:dark){:root{--ink:#e6e9ec;--dim:#9aa4ae;--line:#333b44;
        --page:#14181c;--soft:#1c2127;--accent:#6cb0ff;--bad:#ff8a7d;--warn:#e5b454}}
        """

    /// Of a drawing that is a file of its own. It has no character that XML would escape.
    static let css = """
        \(palette)
        svg{background:var(--page);font:12px system-ui,sans-serif}
        text{fill:var(--ink);font-variant-numeric:tabular-nums}
        .title{font-size:20px;font-weight:600}
        .h{font-size:15px;font-weight:600}
        .t{fill:var(--dim)}
        .m{text-anchor:middle}.e{text-anchor:end}
        .page{fill:var(--page)}
        path{fill:none}
        .grid{stroke:var(--line)}
        .curve{stroke:var(--accent);stroke-width:2}
        .waits{stroke:var(--accent);stroke-width:2;stroke-dasharray:2 4}
        .busy{stroke:var(--warn);stroke-width:1.5;stroke-dasharray:7 4}
        .alone{stroke:var(--dim);stroke-width:1.5;stroke-dasharray:2 3}
        .budget{stroke:var(--bad);stroke-width:1.5;stroke-dasharray:7 4}
        .band{fill:var(--accent);opacity:.24}
        .point,.own{fill:var(--accent)}.other{fill:var(--dim)}
        .chosen{fill:var(--page);stroke:var(--bad);stroke-width:3}
        .whisker{stroke:var(--ink);stroke-width:1.5}
        .blocked{fill:var(--accent)}.redone{fill:var(--bad)}.restart{fill:var(--warn);opacity:.6}
        .waiting{fill:var(--dim);opacity:.55}
        """
}
