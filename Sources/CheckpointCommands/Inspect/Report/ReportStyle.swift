/// The page's own style and script. Their digests stand in the content security policy, so that
/// nothing else can run or style, whatever a file's names say.
enum ReportStyle {
    /// SHA-256 of `css` and of `script` in base64; Tests/PythonTests/test_report_page.py holds
    /// them to the text.
    static let cssDigest = "pmWgejrkTIckj+1Keg9Q1zmfDuRC3nPw62swRTt491w="
    static let scriptDigest = "+pi13Bjo1TtYegZiIBYApFgGqa1G7IdJdHx+bN9Oam0="

    static let css = """
        \(ChartStyle.palette)
        *{box-sizing:border-box}
        body{margin:0 auto;max-width:1080px;padding:40px 24px 64px;background:var(--page);
        color:var(--ink);font:15px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
        h1{font-size:26px;line-height:1.2;margin:0 0 4px;letter-spacing:-.01em}
        h2{font-size:17px;margin:44px 0 12px;padding-top:14px;border-top:1px solid var(--line)}
        h3{font-size:15px;margin:0}
        p{margin:6px 0;max-width:75ch}
        a{color:var(--accent)}
        .dim,dt,caption,th,.scale{color:var(--dim)}
        .verdict{font-size:20px;margin:18px 0 4px;font-weight:600}
        .good{color:var(--accent)}.bad{color:var(--bad)}.warn{color:var(--warn)}
        code,.mono{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,monospace}
        dl{display:grid;grid-template-columns:minmax(110px,max-content) 1fr;gap:4px 20px;margin:0}
        dd{margin:0}
        .scroll{overflow-x:auto}
        table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
        caption{text-align:left;padding:0 0 6px}
        th,td{text-align:left;padding:5px 16px 5px 0;border-bottom:1px solid var(--line);
        vertical-align:top;overflow-wrap:normal}
        .scroll+.scroll{margin-top:16px}td.name{overflow-wrap:anywhere}
        th{font-weight:500;white-space:nowrap}
        .n{text-align:right;white-space:nowrap}
        .name{min-width:180px}
        th button{all:unset;cursor:pointer}
        th button:hover,th button:focus-visible{color:var(--accent);text-decoration:underline}
        th[aria-sort=ascending] button::after{content:" \\2191"}
        th[aria-sort=descending] button::after{content:" \\2193"}
        details{border-bottom:1px solid var(--line);padding:6px 0}
        summary{cursor:pointer}
        article{padding:14px 0;border-bottom:1px solid var(--line)}
        svg{display:block;width:100%;height:auto;font:12px system-ui,sans-serif}
        svg text{fill:var(--ink);font-variant-numeric:tabular-nums}
        svg .t{fill:var(--dim)}
        .track{fill:var(--soft);stroke:var(--line)}
        .full{fill:var(--accent)}.part{fill:var(--accent);opacity:.45}.old{fill:var(--dim)}
        .torn{fill:var(--warn)}.broken{fill:var(--bad)}
        @media(max-width:600px){body{padding:24px 16px 48px}dl{grid-template-columns:1fr;gap:0}
        dd{margin-bottom:8px}.wide{min-width:640px}table{min-width:520px}}
        @media print{body{max-width:none;padding:0}details:not([open])>*{display:revert}
        h2{break-after:avoid}tr,article{break-inside:avoid}}
        """

    /// Sorts a table by the column whose header is pressed. The page is intact without it.
    static let script = """
        for(const table of document.querySelectorAll("table.sortable")){
        const heads=[...table.tHead.rows[0].cells];
        heads.forEach((head,column)=>{
        const button=document.createElement("button");
        button.type="button";button.textContent=head.textContent;head.replaceChildren(button);
        button.addEventListener("click",()=>{
        const down=head.getAttribute("aria-sort")==="ascending";
        heads.forEach(other=>other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort",down?"descending":"ascending");
        const key=row=>{const cell=row.cells[column];
        return cell.dataset.value===undefined?cell.textContent:Number(cell.dataset.value)};
        const rows=[...table.tBodies[0].rows].map(row=>[key(row),row]);
        rows.sort(([a],[b])=>(a<b?-1:a>b?1:0)*(down?-1:1));
        table.tBodies[0].append(...rows.map(([,row])=>row));
        })})}
        """
}
