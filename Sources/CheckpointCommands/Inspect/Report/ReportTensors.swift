internal import CheckpointFormat

/// The tensor table of the report page; many tensors are folded by the first parts of their names.
enum ReportTensors {
    /// Up to so many are one open table.
    private static let flatCountMaximum = 200
    private static let groupCountMaximum = 400
    /// More rows than that no browser shows with ease.
    private static let rowCountMaximum = 50_000

    private struct Group {
        var name: String
        var tensors: [SafetensorsManifest.Tensor] = []
    }

    static func section(_ manifest: SafetensorsManifest) -> HTMLText {
        let tensors = manifest.tensors
        var html: HTMLText = ""
        let shown = tensors.prefix(rowCountMaximum)
        if tensors.count <= flatCountMaximum {
            html += table(Array(shown), caption: Quantity.plural(tensors.count, "tensor"))
        } else {
            html += "<p class=\"dim\">\(Quantity.plural(tensors.count, "tensor")), by name.</p>"
            for group in groups(shown) {
                let size = byteCount(group.tensors)
                html += """
                    <details><summary><code>\(group.name)</code> \
                    <span class="dim">\(Quantity.plural(group.tensors.count, "tensor")), \
                    \(Quantity.bytes(size))</span></summary>\
                    \(table(group.tensors, caption: group.name))</details>
                    """
            }
        }
        let hidden = tensors.count - shown.count
        if hidden > 0 {
            html += """
                <p>\(Quantity.plural(hidden, "tensor")) more; pcinspect tensors lists all.</p>
                """
        }
        return html
    }

    private static func byteCount(_ tensors: [SafetensorsManifest.Tensor]) -> UInt64 {
        tensors.reduce(0) { $0 + UInt64($1.dataRange.count) }
    }

    /// By as many parts of the names, up to four, as give a number of groups that can be read.
    private static func groups(_ tensors: ArraySlice<SafetensorsManifest.Tensor>) -> [Group] {
        for partCount in [4, 3, 2, 1] {
            var groups: [Group] = []
            var indices: [String: Int] = [:]
            for tensor in tensors {
                let parts = tensor.name.split(separator: ".", omittingEmptySubsequences: false)
                let key = parts.dropLast().prefix(partCount).joined(separator: ".")
                let index = indices[key] ?? groups.count
                if index == groups.count {
                    indices[key] = index
                    groups.append(Group(name: key.isEmpty ? "(top level)" : key))
                }
                groups[index].tensors.append(tensor)
            }
            if groups.count <= groupCountMaximum { return groups }
        }
        return [Group(name: "all tensors", tensors: Array(tensors))]
    }

    private static func table(
        _ tensors: [SafetensorsManifest.Tensor], caption: String
    ) -> HTMLText {
        let rows = tensors.map { tensor -> HTMLText in
            let shape = tensor.shape.map(String.init).joined(separator: " × ")
            let elementCount = tensor.shape.reduce(1.0) { $0 * Double($1) }
            return """
                <tr><td class="name"><code>\(tensor.name)</code></td>\
                <td>\(tensor.elementType.name)</td>\
                <td class="n" data-value="\(elementCount)">\(shape.isEmpty ? "scalar" : shape)</td>\
                <td class="n" data-value="\(tensor.dataRange.count)">\
                \(Quantity.bytes(UInt64(tensor.dataRange.count)))</td></tr>
                """
        }
        return """
            <div class="scroll"><table class="sortable"><caption>\(caption)</caption><thead><tr>\
            <th scope="col">tensor</th><th scope="col">dtype</th><th scope="col" class="n">shape\
            </th><th scope="col" class="n">size</th></tr></thead><tbody>\(rows)</tbody>\
            </table></div>
            """
    }
}
