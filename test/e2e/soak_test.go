//go:build soak

package e2e

import (
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestSoak runs the scripts of testdata/soak, which take as long as SOAK_SECONDS each (600 unless set).
func TestSoak(t *testing.T) {
	r := start(t)
	testscript.Run(t, testscript.Params{
		Dir:                "testdata/soak",
		Setup:              r.setup,
		Cmds:               commands,
		Condition:          condition,
		WorkdirRoot:        filepath.Join(r.dir, "work"),
		RequireUniqueNames: true,
	})
}
