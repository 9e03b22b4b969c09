// Package images makes container images out of files that are at hand, and writes them into OCI image layouts: for the
// demo, the tests and the benchmarks, which may not fetch any.
//
// What is made is a function of what is asked for: no clock, no random numbers, no user names. The same calls give the
// same digests on every machine, as far as the files that they are given are the same.
//
// It is a builder, not a library: it can write what a reader must be able to bear (a Docker manifest in an OCI layout, a
// name twice in one tar, a whiteout of nothing), and does not ask whether that is wise. It shares no code with the
// packages under test, so that a mistake there is not made here as well.
package images
