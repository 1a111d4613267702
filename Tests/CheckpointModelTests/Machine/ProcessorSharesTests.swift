import Testing

@testable import CheckpointModel

@Suite struct ProcessorSharesTests {
    @Test func eachHasAProcessorWhereThereAreEnough() {
        let shares = ProcessorShares(processorCount: 8, normalThreads: 5, writerThreads: 3)
        #expect(shares.normal == 1)
        #expect(shares.writer == 1)
    }

    @Test func writersTakeWhatIsLeft() {
        let shares = ProcessorShares(processorCount: 2, normalThreads: 1, writerThreads: 3)
        #expect(shares.normal == 1)
        #expect(FormulaTests.isNear(shares.writer, 1.0 / 3))
    }

    @Test func whereNothingIsLeftWeightDecides() {
        let shares = ProcessorShares(processorCount: 2, normalThreads: 2, writerThreads: 2)
        // 1024 and 110 in the table of the kernel.
        #expect(abs(shares.writer / shares.normal - 110.0 / 1024) < 0.001)
        #expect(FormulaTests.isNear(2 * shares.normal + 2 * shares.writer, 2))
    }

    @Test func noProcessorIsLeftAloneOrUsedTwice() {
        var random = SeededRandom(seed: 7)
        for _ in 0..<1000 {
            let count = Double(random.index(below: 64) + 1)
            let normal = Double(random.index(below: 80))
            let writers = Double(random.index(below: 80))
            let shares = ProcessorShares(
                processorCount: count, normalThreads: normal, writerThreads: writers)
            let used = normal * shares.normal + writers * shares.writer
            #expect(FormulaTests.isNear(used, min(count, normal + writers)))
            #expect(shares.writer <= shares.normal)
        }
    }
}
