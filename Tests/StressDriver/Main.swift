// Runs the stress of `StressRun` and checks every history: `StressDriver COUNT [SEED]`.
//
// Run by `make test-threads` under ThreadSanitizer, which ends the program at its first report.
import Glibc
import StressTargets

@main
private enum Main {
    static func main() {
        let arguments = CommandLine.arguments.dropFirst().map { UInt64($0) }
        guard let count = arguments.first ?? nil else {
            print("usage: StressDriver COUNT [SEED]")
            exit(16)
        }
        let first = arguments.count > 1 ? arguments[1] ?? 0 : 0
        var operationCount = 0
        for seed in first..<first + count {
            let problem: String?
            do {
                let history = try StressRun(seed: seed).history()
                operationCount += history.operations.count
                problem = history.violation
            } catch {
                problem = "\(error)"
            }
            if let problem {
                print("seed \(seed): \(problem)\nreplay: StressDriver 100 \(seed)")
                exit(1)
            }
        }
        print("\(count) runs, \(operationCount) operations, no violation")
    }
}
