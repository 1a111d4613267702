import CheckpointModel
import Testing

@testable import CheckpointWriter

@Suite struct PriorityTests {
    @Test func theModelKnowsThePriorityOfWriters() {
        #expect(ProcessorShares.writerNice == Engine.writerNice)
    }
}
