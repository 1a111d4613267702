import CheckpointFormat
import CheckpointStorage
import Foundation
import Testing

@testable import CheckpointStorage

/// What each system call's errors say, by errno: the code, and what to do.
@Suite struct StorageCallsTests {
    private struct Case {
        let number: Int32
        let code: CheckpointError.Code
        /// What the message must hold behind the system's own words; nil for no advice at all.
        let advice: String?

        init(_ number: Int32, _ code: CheckpointError.Code, _ advice: String?) {
            self.number = number
            self.code = code
            self.advice = advice
        }
    }

    private func check(_ call: String, _ cases: [Case], _ make: (Int32) -> StorageError) {
        for item in cases {
            let found = make(item.number)
            let error = CheckpointError(found)
            #expect(error.code == item.code, "\(call), errno \(item.number)")
            #expect(error.osErrorNumber == item.number)
            let end = found.advice.map { "; \($0)" } ?? ""
            // Safe: the text is copied before another call could change it.
            let meaning = unsafe String(cString: strerror(item.number))
            #expect(error.message.hasSuffix(meaning + end), "\(error.message)")
            #expect(error.message.hasPrefix("run.pcc: \(found.operation)"), "\(error.message)")
            guard let advice = item.advice else {
                #expect(found.advice == nil, "\(error.message)")
                continue
            }
            #expect(found.advice?.contains(advice) == true, "\(error.message)")
        }
    }

    private static let device = "check the kernel log, then run pcfsck --verify full"

    @Test func open() {
        check(
            "open",
            [
                Case(ENOENT, .notFound, "create the file with pccheck create"),
                Case(ENOTDIR, .notFound, "check the path"),
                Case(EACCES, .readOnly, "its owner and its permissions"),
                Case(EPERM, .readOnly, "its owner and its permissions"),
                Case(EROFS, .readOnly, "mounted read-only"),
                Case(EBUSY, .locked, "a device that is mounted"),
                Case(EMFILE, .resourceLimit, "ulimit -n"),
                Case(ENFILE, .resourceLimit, "fs.file-max"),
                Case(EFBIG, .resourceLimit, "file"),
                Case(ENAMETOOLONG, .inputOutput, "give a shorter name"),
                Case(EIO, .inputOutput, Self.device), Case(ELOOP, .inputOutput, nil),
            ]
        ) { .open(errno: $0, path: "run.pcc") }
    }

    @Test func create() {
        check(
            "create",
            [
                Case(ENOENT, .notFound, "the directory does not exist"),
                Case(ENOTDIR, .notFound, "give the path of a directory"),
                Case(EACCES, .readOnly, "permissions of the directory"),
                Case(EROFS, .readOnly, "mounted read-only"),
                Case(ENOSPC, .noSpace, "free some space"),
                Case(EDQUOT, .noSpace, "raise the quota"),
                Case(EMFILE, .resourceLimit, "ulimit -n"),
                Case(EFBIG, .resourceLimit, "file"),
                Case(ENAMETOOLONG, .inputOutput, "give a shorter name"),
            ]
        ) { .create(errno: $0, path: "run.pcc") }
    }

    private static let writing = [
        Case(ENOSPC, .noSpace, "free some space"), Case(EDQUOT, .noSpace, "raise the quota"),
        Case(EFBIG, .resourceLimit, "file"), Case(EIO, .inputOutput, device),
        Case(EROFS, .readOnly, "mounted read-only"),
        Case(EPERM, .readOnly, "cannot be written by this user"), Case(EINVAL, .inputOutput, nil),
    ]

    @Test func whatWrites() {
        check("fallocate", Self.writing) { .allocate(errno: $0, path: "run.pcc", byteCount: 8192) }
        check("ftruncate", Self.writing) { .truncate(errno: $0, path: "run.pcc") }
        check("fdatasync", Self.writing) { .flush(errno: $0, path: "run.pcc") }
        for operation in ["pwrite", "io_uring write"] {
            check(operation, Self.writing) {
                .write(
                    errno: $0, operation: operation, path: "run.pcc", byteOffset: 4096,
                    byteCount: 8192)
            }
        }
    }

    @Test func whatReads() {
        let cases = [Case(EIO, .inputOutput, Self.device), Case(EBADF, .inputOutput, nil)]
        check("pread", cases) {
            .read(errno: $0, path: "run.pcc", byteOffset: 4096, byteCount: 8192)
        }
        check("fstat", cases) { .stat(errno: $0, path: "run.pcc") }
        let end = StorageError.read(errno: 0, path: "run.pcc", byteOffset: 4096, byteCount: 8192)
        #expect("\(end)" == "run.pcc: pread of 8192 bytes at byte 4096 met the end of the file")
    }

    @Test func publish() {
        check(
            "rename",
            [
                Case(EEXIST, .exists, "choose another path, or replace it explicitly"),
                Case(ENAMETOOLONG, .inputOutput, "give a shorter name"),
                Case(EACCES, .readOnly, "permissions of the directory"),
                Case(ENOSPC, .noSpace, "free some space"),
                Case(EROFS, .readOnly, "mounted read-only"),
            ]
        ) { .rename(errno: $0, path: "run.pcc") }
        check(
            "fchmod",
            [Case(EPERM, .readOnly, "as the owner of the file"), Case(EIO, .inputOutput, "device")]
        ) { .copyAccess(errno: $0, path: "run.pcc") }
    }

    /// Without locks a reader goes on; a lock that is held elsewhere is no error at all.
    @Test func lock() {
        for operation in ["lock", "unlock", "lock query"] {
            for number in [EINVAL, ENOLCK, ENOSYS, EOPNOTSUPP] {
                let error = StorageError.lock(
                    errno: number, operation: operation, path: "run.pcc", byteOffset: 1)
                #expect(error.saysNoLocks && CheckpointError(error).code == .unsupported)
                #expect(error.advice?.contains("has no open-file-description locks") == true)
            }
            let error = StorageError.lock(
                errno: EDEADLK, operation: operation, path: "run.pcc", byteOffset: 1)
            #expect(!error.saysNoLocks && error.advice == nil)
            #expect(CheckpointError(error).code == .inputOutput)
        }
    }

    @Test func startThread() {
        let error = StorageError.startThread(errno: EAGAIN, name: "pcc-write-1")
        #expect(CheckpointError(error).code == .resourceLimit)
        #expect("\(error)".hasPrefix("thread pcc-write-1: pthread_create failed: "))
        #expect(error.advice?.contains("fewer workers") == true)
    }

    /// What else helps is named only where there is no room, and behind what always helps.
    @Test func anAlternativeIsForWhatIsFull() {
        let full = StorageError.create(errno: ENOSPC, path: "run.pcc")
        #expect(full.orElse("wait").advice == "free some space, or wait")
        #expect(
            StorageError.create(errno: EDQUOT, path: "run.pcc").orElse("wait").advice
                == "raise the quota, or wait")
        let other = StorageError.create(errno: EROFS, path: "run.pcc")
        #expect(other.orElse("wait") == other)
    }
}
