// Command imgfs mounts container images as files.
//
// Each subcommand is one file: a constructor, a struct of its options, and a run method. The packages below do the work;
// what is here is how their parts are put together (serve.go), which SOURCE is opened by which package (sources.go), and
// which error is which exit code (exit.go).
//
// Called as mount.imgfs it takes the arguments that mount(8) gives to its helpers.
package main
