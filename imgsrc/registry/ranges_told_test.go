package registry

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
)

// Requests that follow one another are one fetch, for each blob, and its bytes are those of all of them.
func TestPartsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said []string
		p := &partsTold{fetching: func(repo string, d digest.Digest, size int64, parts bool) (func(int64), func(error)) {
			name := d.Encoded()[:1]
			said = append(said, fmt.Sprintf("%s begins: %s %d %v", name, repo, size, parts))
			return func(n int64) { said = append(said, fmt.Sprintf("%s %d", name, n)) }, func(err error) { said = append(said, fmt.Sprintf("%s ends: %v", name, err)) }
		}}
		check := func(want ...string) {
			t.Helper()
			synctest.Wait()
			if got := strings.Join(said, "\n"); got != strings.Join(want, "\n") {
				t.Fatalf("%s\nwant\n%s", got, strings.Join(want, "\n"))
			}
			said = nil
		}
		a, b := digest.Digest("sha256:a"), digest.Digest("sha256:b")
		first := p.begin("h/r", a, 100)
		second := p.begin("h/other", a, 100)
		other := p.begin("h/r", b, 200)
		check("a begins: h/r 100 true", "b begins: h/r 200 true")
		time.Sleep(time.Hour)
		first(10, nil)
		time.Sleep(time.Hour)
		second(0, errors.New("boom"))
		time.Sleep(restTime / 2)
		check("a 10", "a 10")
		again := p.begin("h/r", a, 100)
		time.Sleep(restTime)
		again(5, nil)
		time.Sleep(2 * restTime)
		check("a 15", "a ends: <nil>") // what failed has come since
		p.begin("h/r", a, 100)(0, errors.New("boom"))
		p.complete(a)
		p.complete(a)
		check("a begins: h/r 100 true", "a 0", "a ends: boom")
		other(7, nil)
		p.close()
		time.Sleep(2 * restTime)
		check("b 7", "b ends: <nil>")
		(&partsTold{}).begin("h/r", a, 1)(1, nil)
		(&partsTold{fetching: func(string, digest.Digest, int64, bool) (func(int64), func(error)) { return nil, nil }}).begin("h/r", a, 1)(1, nil)
	})
}
