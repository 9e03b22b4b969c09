// Command report runs "go test" with its arguments and prints what go test prints by itself: a line for each package, and
// the output of what failed. Unlike go test it also names the tests that were skipped, and where the environment variable
// CI is "true" a skip is a failure: a test that cannot run there protects nothing.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

// An event is a line of `go test -json`; `go doc test2json` has the fields.
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
}

type test struct{ pkg, name string }

func main() {
	cmd := exec.Command("go", append([]string{"test", "-json"}, os.Args[1:]...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "report: running go test:", err)
		os.Exit(1)
	}
	skipped := report(out, os.Stdout)
	failed := cmd.Wait() != nil
	for _, s := range skipped {
		fmt.Printf("skipped: %s %s\n", s.pkg, s.name)
	}
	if os.Getenv("CI") == "true" && len(skipped) > 0 {
		fmt.Println("report: skips are failures where CI=true")
		failed = true
	}
	if failed {
		os.Exit(1)
	}
}

// report copies what matters from go test's events to w, until r ends, and returns the tests that were skipped. What a
// test printed is held until the test has passed, and then dropped.
func report(r io.Reader, w io.Writer) (skipped []test) {
	held := map[test]*strings.Builder{}
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			break
		}
		var e event
		if json.Unmarshal(line, &e) != nil {
			_, _ = w.Write(line)
			continue
		}
		t := test{e.Package, e.Test}
		switch e.Action {
		case "build-output":
			fmt.Fprint(w, e.Output)
		case "output":
			if e.Test == "" {
				if e.Output != "PASS\n" {
					fmt.Fprint(w, e.Output)
				}
				continue
			}
			if strings.HasPrefix(e.Output, "=== ") { // RUN, PAUSE, CONT, NAME: go test prints them only with -v
				continue
			}
			if held[t] == nil {
				held[t] = &strings.Builder{}
			}
			held[t].WriteString(e.Output)
		case "pass":
			delete(held, t)
		case "skip":
			if e.Test != "" {
				skipped = append(skipped, t)
			}
			delete(held, t)
		case "fail":
			if out := held[t]; out != nil {
				fmt.Fprint(w, out)
				delete(held, t)
			}
		}
	}
	for _, out := range held { // the test binary died in the middle of these
		fmt.Fprint(w, out)
	}
	return skipped
}
