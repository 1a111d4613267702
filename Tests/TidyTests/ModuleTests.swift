import Foundation
import Testing

/// spec/ARCHITECTURE.md says which module may import which; the sources obey.
@Suite struct ModuleTests {
    /// module → what the table allows it to import, indirectly too.
    static func allowed() throws -> [String: Set<String>] {
        let short = [
            "Format": "CheckpointFormat", "Storage": "CheckpointStorage",
            "Device": "CheckpointDevice", "Recovery": "CheckpointRecovery",
            "Group": "CheckpointGroup", "Model": "CheckpointModel",
            "Writer": "CheckpointWriter", "Check": "CheckpointCheck",
            "Commands": "CheckpointCommands",
        ]
        var table: [String: Set<String>] = [:]
        for line in try Repository.lines("spec/ARCHITECTURE.md") where line.hasPrefix("| `") {
            let cells = line.split(separator: "|").map {
                $0.trimmingCharacters(in: .whitespaces)
            }
            guard cells.count == 3 else { continue }
            let imports = cells[2].components(separatedBy: ", ").map { short[$0] ?? $0 }
            for name in cells[0].matches(of: /`(\w+)`/) {
                table[String(name.1)] = Set(imports)
            }
        }
        return table
    }

    @Test func importsPointDown() throws {
        let table = try Self.allowed()
        let own = Set(table.keys)
        #expect(own.count >= 12, "the table was found")
        for (module, allowed) in table {
            let paths = ["Sources", "Tests/Support"].flatMap {
                Repository.files("\($0)/\(module)", [".swift"])
            }
            for path in paths {
                for line in try Repository.lines(path) {
                    guard
                        let match = line.firstMatch(
                            of: /^\s*(?:public |internal )?import (\w+)/)
                    else { continue }
                    let name = String(match.1)
                    guard own.contains(name) else { continue }
                    let isOwnHeader = module == "PCCheckC" && name == "CPCCheck"
                    #expect(
                        allowed.contains(name) || isOwnHeader,
                        "\(path) imports \(name); spec/ARCHITECTURE.md does not allow it")
                }
            }
        }
    }

    @Test func nothingThatShipsImportsTheFaults() throws {
        for path in Repository.files("Sources", [".swift"]) {
            let text = try Repository.text(path)
            #expect(!text.contains("import StorageFaults"), "\(path)")
            #expect(!text.contains("import FakeCUDA"), "\(path)")
            #expect(!text.contains("import FakeDevices"), "\(path)")
            #expect(!text.contains("import CheckpointSimulation"), "\(path)")
        }
    }

    @Test(arguments: [
        "Sources/CheckpointFormat", "Sources/CheckpointGroup", "Sources/CheckpointModel",
        "Sources/CheckpointCommands/Extract/Formats",
    ])
    func formatDoesNoInputOutput(folder: String) throws {
        let paths = Repository.files(folder, [".swift"])
        #expect(!paths.isEmpty)
        for path in paths {
            let text = try Repository.text(path)
            for name in [
                "import Foundation", "import SystemPackage", "import Dispatch", "pread(",
                "pwrite(", " open(", "clock_gettime(", "pthread_",
            ] {
                #expect(!text.contains(name), "\(path) has \(name)")
            }
        }
    }
}
