// swift-tools-version: 6.2
import PackageDescription

// Every Swift target is built alike: language mode 6, strict memory safety, no implicit
// existentials, no leaked imports, and no warning that survives.
let boundarySettings: [SwiftSetting] = [
    .swiftLanguageMode(.v6),
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("MemberImportVisibility"),
    .enableUpcomingFeature("InternalImportsByDefault"),
    .treatAllWarnings(as: .error),
]
let swiftSettings = boundarySettings + [.strictMemorySafety()]

let argumentParser: Target.Dependency = .product(
    name: "ArgumentParser", package: "swift-argument-parser")
let systemPackage: Target.Dependency = .product(name: "SystemPackage", package: "swift-system")
let logging: Target.Dependency = .product(name: "Logging", package: "swift-log")
let metrics: Target.Dependency = .product(name: "Metrics", package: "swift-metrics")

func module(
    _ name: String, _ dependencies: [Target.Dependency], exclude: [String] = []
) -> Target {
    .target(
        name: name, dependencies: dependencies, exclude: exclude, swiftSettings: swiftSettings)
}

func tool(_ name: String) -> Target {
    .executableTarget(
        name: name, dependencies: ["CheckpointCommands"], swiftSettings: swiftSettings)
}

func tests(_ name: String, _ dependencies: [Target.Dependency]) -> Target {
    .testTarget(name: name, dependencies: dependencies, swiftSettings: swiftSettings)
}

// What several tests share.
func support(_ name: String, _ dependencies: [Target.Dependency]) -> Target {
    .target(
        name: name, dependencies: dependencies, path: "Tests/Support/\(name)",
        swiftSettings: swiftSettings)
}

// Programs beside the tests, built with sanitizers: `make fuzz` and `make test-threads` set this.
let drivers: [Target] =
    Context.environment["PCCHECK_DRIVERS"] == nil
    ? []
    : [driver("Fuzz", exclude: ["run"]), driver("Stress")]

func driver(_ name: String, exclude: [String] = []) -> Target {
    .executableTarget(
        name: "\(name)Driver", dependencies: [.target(name: "\(name)Targets")],
        path: "Tests/\(name)Driver", exclude: exclude, swiftSettings: swiftSettings)
}

let package = Package(
    name: "pccheck",
    products: [
        .library(name: "CheckpointFormat", targets: ["CheckpointFormat"]),
        .library(name: "CheckpointWriter", targets: ["CheckpointWriter"]),
        .library(name: "CheckpointRecovery", targets: ["CheckpointRecovery"]),
        .library(name: "CheckpointGroup", targets: ["CheckpointGroup"]),
        .library(name: "CheckpointCheck", targets: ["CheckpointCheck"]),
        // `make` installs this as libpccheck.so; a product cannot share a name with a tool.
        .library(name: "pccheck-c", type: .dynamic, targets: ["PCCheckC"]),
        .executable(name: "pcfsck", targets: ["pcfsck"]),
        .executable(name: "pcinspect", targets: ["pcinspect"]),
        .executable(name: "pcextract", targets: ["pcextract"]),
        .executable(name: "pccheck", targets: ["pccheck"]),
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
        .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
        .package(url: "https://github.com/apple/swift-metrics", from: "2.13.0"),
        .package(url: "https://github.com/apple/swift-system", from: "1.8.1"),
    ],
    targets: [
        .systemLibrary(
            name: "CXXHash", pkgConfig: "libxxhash", providers: [.apt(["libxxhash-dev"])]),
        .systemLibrary(name: "CZstd", pkgConfig: "libzstd", providers: [.apt(["libzstd-dev"])]),
        .target(name: "CDigest", dependencies: ["CXXHash"]),
        // The archive, so that nothing that is built needs liburing where it runs.
        .target(
            name: "CPlatformLinux", linkerSettings: [.linkedLibrary(":liburing.a")]),
        // libcuda.so.1 is loaded on demand, so that nothing needs it to build or to start.
        .target(name: "CPlatformCUDA"),
        .target(name: "CBenchmark"),

        module("CheckpointFormat", ["CDigest", "CZstd"]),
        module(
            "CheckpointStorage", ["CDigest", "CPlatformLinux", systemPackage, "CheckpointFormat"]),
        module("CheckpointDevice", ["CPlatformCUDA", "CheckpointFormat", "CheckpointStorage"]),
        module(
            "CheckpointRecovery", ["CheckpointFormat", "CheckpointStorage", "CheckpointDevice"]),
        module("CheckpointGroup", ["CheckpointFormat", "CheckpointRecovery"]),
        module("CheckpointModel", ["CheckpointFormat"]),
        module(
            "CheckpointWriter",
            [
                "CheckpointFormat", "CheckpointStorage", "CheckpointDevice", "CheckpointRecovery",
                logging, metrics,
            ]),
        module(
            "CheckpointCheck",
            ["CheckpointFormat", "CheckpointStorage", "CheckpointRecovery", "CheckpointGroup"]),
        module(
            "CheckpointCommands",
            [
                "CheckpointFormat", "CheckpointStorage", "CheckpointDevice", "CheckpointRecovery",
                "CheckpointGroup", "CheckpointCheck", "CheckpointWriter", "CheckpointModel",
                "CBenchmark", argumentParser,
            ],
            exclude: ["man"]),
        tool("pcfsck"),
        tool("pcinspect"),
        tool("pcextract"),
        tool("pccheck"),

        .target(name: "CPCCheck", exclude: ["examples"]),
        // pccheck.map is the linker script that exports only pcc_*; the Makefile passes it.
        // Every line of this module handles C pointers, so marking them would mark nothing.
        .target(
            name: "PCCheckC",
            dependencies: [
                "CPCCheck", "CheckpointFormat", "CheckpointStorage", "CheckpointDevice",
                "CheckpointRecovery", "CheckpointGroup", "CheckpointModel", "CheckpointWriter",
            ],
            exclude: ["pccheck.map"], swiftSettings: boundarySettings),

        .target(name: "FakeCUDA", path: "Tests/Support/FakeCUDA"),
        support(
            "FakeDevices",
            ["CheckpointFormat", "CheckpointStorage", "CheckpointDevice", "FakeCUDA"]),
        support("StorageFaults", ["CheckpointFormat", "CheckpointStorage"]),
        .target(
            name: "FuzzTargets",
            dependencies: [
                "CheckpointFormat", "CheckpointStorage", "CheckpointRecovery", "CheckpointCheck",
                "StorageFaults",
            ],
            path: "Tests/FuzzTargets", swiftSettings: swiftSettings),
        support(
            "CheckpointSimulation",
            [
                "CheckpointFormat", "CheckpointStorage", "CheckpointDevice", "CheckpointRecovery",
                "CheckpointGroup", "CheckpointWriter", "CheckpointCheck", "StorageFaults",
            ]),
        .target(name: "CProcessor", path: "Tests/Support/CProcessor"),
        .executableTarget(
            name: "simulate",
            dependencies: ["CheckpointSimulation", "CProcessor", argumentParser],
            path: "Tests/Support/simulate", swiftSettings: swiftSettings),

        tests("CheckpointFormatTests", ["CheckpointFormat"]),
        tests(
            "CheckpointStorageTests", ["CheckpointFormat", "CheckpointStorage", "CPlatformLinux"]),
        tests(
            "CheckpointRecoveryTests",
            [
                "CheckpointFormat", "CheckpointStorage", "CheckpointDevice", "CheckpointRecovery",
                "StorageFaults", "FakeDevices",
            ]),
        tests(
            "CheckpointGroupTests",
            ["CheckpointFormat", "CheckpointRecovery", "CheckpointGroup"]),
        tests("CheckpointModelTests", ["CheckpointFormat", "CheckpointModel"]),
        tests(
            "CheckpointWriterTests",
            [
                "CheckpointFormat", "CheckpointStorage", "CheckpointDevice", "CheckpointModel",
                "CheckpointRecovery", "CheckpointWriter", "StorageFaults", "FakeDevices", logging,
            ]),
        .testTarget(
            name: "PCCheckCTests",
            dependencies: [
                "CPCCheck", "CheckpointFormat", "CheckpointStorage", "CheckpointWriter", "PCCheckC",
            ],
            swiftSettings: boundarySettings),
        tests(
            "CheckpointCheckTests",
            [
                "CheckpointFormat", "CheckpointStorage", "CheckpointRecovery",
                "CheckpointWriter", "CheckpointCheck", "StorageFaults",
                "CheckpointSimulation",
            ]),
        tests(
            "CrashConsistencyTests",
            [
                "CheckpointFormat", "CheckpointStorage", "CheckpointRecovery",
                "CheckpointWriter", "CheckpointCheck", "StorageFaults",
                "CheckpointSimulation",
            ]),
        tests(
            "CommandTests",
            [
                "CheckpointFormat", "CheckpointStorage", "CheckpointRecovery",
                "CheckpointWriter", "CheckpointCommands", "pcfsck", "pcinspect", "pcextract",
                "pccheck",
            ]),
        .target(
            name: "StressTargets",
            dependencies: [
                "CheckpointFormat", "CheckpointStorage", "CheckpointDevice", "CheckpointRecovery",
                "CheckpointWriter", "StorageFaults", "FakeDevices",
            ],
            path: "Tests/StressTargets", swiftSettings: swiftSettings),
        tests("StressTests", ["CheckpointFormat", "CheckpointWriter", "StressTargets"]),
        tests("FuzzTests", ["CheckpointFormat", "StorageFaults", "FuzzTargets"]),
        tests("TidyTests", ["CheckpointFormat", "CheckpointCheck"]),
    ] + drivers
)
