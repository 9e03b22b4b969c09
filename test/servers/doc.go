// Package servers starts what images are had from by asking: registries and engines. Each runs for one test, on the
// loopback interface or a socket of its own, with directories of its own, and is gone when the test has ended.
package servers
