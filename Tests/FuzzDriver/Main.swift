// libFuzzer's main function with callbacks in Swift.
//
// Run by `make fuzz`. PCCHECK_FUZZ_TARGET names the target, PCCHECK_FUZZ_SEALING=0 leaves
// checksums as mutation left them; arguments are libFuzzer's.
import FuzzTargets
import Glibc

private typealias Callback = @convention(c) (UnsafePointer<UInt8>?, Int) -> Int32

// libFuzzer has no header; these are its declarations in the LLVM manual.
@_silgen_name("LLVMFuzzerRunDriver")
private func runDriver(
    _ count: UnsafeMutablePointer<Int32>,
    _ arguments: UnsafeMutablePointer<UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>>,
    _ callback: Callback
) -> Int32

@_silgen_name("LLVMFuzzerMutate")
private func mutateInPlace(
    _ bytes: UnsafeMutablePointer<UInt8>?, _ count: Int, _ countMaximum: Int
) -> Int

private func environment(_ name: String) -> String? {
    // Safe: nobody changes the environment of this process.
    unsafe getenv(name).map { unsafe String(cString: $0) }
}

private let target = FuzzTarget(rawValue: environment("PCCHECK_FUZZ_TARGET") ?? "")
private let isSealing = environment("PCCHECK_FUZZ_SEALING") != "0"

@main
private enum Main {
    static func main() {
        guard target != nil else {
            let names = FuzzTarget.allCases.map(\.rawValue).joined(separator: ", ")
            print("set PCCHECK_FUZZ_TARGET to one of \(names)")
            exit(16)
        }
        var count = CommandLine.argc
        // Safe: both live as long as the process.
        var arguments = unsafe CommandLine.unsafeArgv
        let status = unsafe runDriver(&count, &arguments) { bytes, count in
            // Safe: libFuzzer keeps `count` bytes there during the call.
            let input = unsafe [UInt8](UnsafeBufferPointer(start: bytes, count: count))
            if let problem = target?.problem(in: input) { fatalError(problem) }
            return 0
        }
        exit(status)
    }
}

/// Called by libFuzzer for the next input, made in place of the last.
@_cdecl("LLVMFuzzerCustomMutator")
func customMutator(
    _ bytes: UnsafeMutablePointer<UInt8>, _ count: Int, _ countMaximum: Int, _ seed: UInt32
) -> Int {
    guard let target else { return count }
    // Safe: libFuzzer owns `countMaximum` bytes there, of which `count` are the input.
    let input = unsafe [UInt8](UnsafeBufferPointer(start: bytes, count: count))
    var mutator = FuzzMutator(seed: UInt64(seed), isSealing: isSealing) { old, maximum in
        var new = old + [UInt8](repeating: 0, count: max(0, maximum - old.count))
        // Safe: libFuzzer changes at most the first `new.count` bytes, which the array owns.
        let size = unsafe new.withUnsafeMutableBufferPointer {
            unsafe mutateInPlace($0.baseAddress, old.count, $0.count)
        }
        return Array(new.prefix(size))
    }
    let output = mutator.mutate(input, for: target, byteCountMaximum: countMaximum)
    for (index, byte) in output.prefix(countMaximum).enumerated() {
        // Safe: the index lies below `countMaximum`.
        unsafe bytes[index] = byte
    }
    return min(output.count, countMaximum)
}
