import CheckpointFormat
import Foundation
import Testing

/// pccheck.h, the Swift codes and the Python exceptions number the same errors alike.
@Suite struct StatusCodeTests {
    static func header() throws -> [String: Int32] {
        var codes: [String: Int32] = [:]
        let lines = try Repository.lines("Sources/CPCCheck/include/pccheck.h")
        var isStatus = false
        for line in lines {
            if line.contains("typedef int32_t pcc_status") { isStatus = true }
            if line.contains("typedef struct pcc_error") { isStatus = false }
            guard isStatus, let match = line.firstMatch(of: /^#define PCC_(\w+) (\d+)/) else {
                continue
            }
            codes[String(match.1)] = Int32(match.2)
        }
        return codes
    }

    @Test func swiftCodesAreThoseOfTheHeader() throws {
        let swift = try Repository.text("Sources/CheckpointFormat/CheckpointError.swift")
        let numbers = swift.matches(of: /static let \w+ = Code\(rawValue: (\d+)\)/)
            .compactMap { Int32($0.1) }
        let header = try Self.header().values.filter { $0 != 0 }
        #expect(numbers.sorted() == header.sorted())
        #expect(header.count >= 24)
    }

    @Test func aFewByName() throws {
        let header = try Self.header()
        #expect(header["LOCKED"] == CheckpointError.Code.locked.rawValue)
        #expect(header["CORRUPT"] == CheckpointError.Code.corrupt.rawValue)
        #expect(header["SKIPPED"] == CheckpointError.Code.skipped.rawValue)
    }
}
