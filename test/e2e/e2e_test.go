// Package e2e runs scripts (testdata/*.txtar) over real mounts, made by the real program, and read by real clients.
//
// A script is a testscript: `go doc github.com/rogpeppe/go-internal/testscript` has the language, commands below the
// commands that are added here, by their Go names. UPDATE=1 rewrites the goldens in the scripts. To run one:
//
//	go test -tags containers_image_openpgp ./test/e2e -run TestScripts/tags -v
//
// What must hold:
//
//   - A mount is served by another process than the one that reads it: the test only starts the program.
//   - Nothing is left, whichever way the run ends. All that a run makes lies below one directory, and all that it
//     starts carries that directory's name in its environment, which is inherited; so both can be found and taken
//     away, by a process that outlives this one (see package reaper).
//   - What is there after a script and ought not be (a mount, a process, a temporary file of imgfs) fails that script.
//   - Registries listen on loopback only.
//   - Order is asserted, not time: a registry that holds uploads until it is told to let go shows that something ends
//     or answers while a push is under way, however slow the machine is.
package e2e

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/test/reaper"
)

func TestMain(m *testing.M) {
	reaper.Main()
	if dir := os.Getenv(holderVar); dir != "" {
		os.Exit(hold(dir))
	}
	asUsual()
	code := m.Run()
	if current != nil && !current.close() && code == 0 {
		code = 1
	}
	os.Exit(code)
}

// asUsual makes what scripts inherit what they count on, however the tests were started. A shell has what it runs in the background
// ignore Ctrl-C, and what a process ignores is ignored by all that it starts, unless it handles it itself.
func asUsual() {
	unix.Umask(0o022)
	for _, s := range []os.Signal{unix.SIGINT, unix.SIGQUIT, unix.SIGHUP} {
		if signal.Ignored(s) {
			signal.Notify(make(chan os.Signal, 1), s)
		}
	}
}

func TestScripts(t *testing.T) {
	r := start(t)
	scripts, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Files:              scripts,
		Setup:              r.setup,
		Cmds:               commands,
		Condition:          condition,
		WorkdirRoot:        filepath.Join(r.dir, "work"),
		UpdateScripts:      os.Getenv("UPDATE") == "1",
		RequireUniqueNames: true,
	})
}

// condition is what a script can ask for beyond testscript's own conditions: [root], and [env:NAME], a variable of go test's
// environment, which the script then has as well.
func condition(cond string) (bool, error) {
	if name, ok := strings.CutPrefix(cond, "env:"); ok {
		return os.Getenv(name) != "", nil
	}
	if cond == "root" {
		return os.Geteuid() == 0, nil
	}
	return false, fmt.Errorf("no condition %q", cond)
}

// commands are what scripts can do beyond testscript's own commands.
var commands = map[string]func(ts *testscript.TestScript, neg bool, args []string){
	"need":        need,          // need PROGRAM...: skip without them; fail where CI=true
	"layout":      layout,        // layout SET DIR: make an OCI layout; SET is sample, odd, formats, stargz, lazy, many=N, files=N or big=BYTES
	"store":       store,         // store DRIVER: a containers-storage of this script's own; sets $STORE and what podman, buildah and skopeo use
	"likepodman":  likePodman,    // likepodman MOUNTPOINT: ids/ says of each image what podman inspect says
	"mounted":     mounted,       // mounted MOUNTPOINT: something that was mounted with exec is unmounted at the end of the script
	"hosttar":     hostTar,       // hosttar FILE BYTES DIR...: a tar of files of this machine, BYTES at the most
	"mount":       mount,         // mount [FLAG...] [SOURCE...] MOUNTPOINT: imgfs mount; unmounted at the end of the script
	"umount":      umount,        // umount MOUNTPOINT: imgfs umount; mount and process must be gone
	"killmount":   killMount,     // killmount MOUNTPOINT: SIGKILL to the process that serves it
	"lock":        lockFile,      // lock FILE: hold the lock that podman takes of FILE, until the script ends or unlock
	"unlock":      unlockFile,    // unlock FILE
	"exits":       exits,         // exits CODE PROGRAM [ARG...]: run it; its exit code must be CODE
	"waitfor":     waitFor,       // waitfor LINE: run LINE with bash until it succeeds
	"setenv":      setEnv,        // setenv NAME LINE: set NAME to what LINE, run with bash, prints
	"sha256of":    sha256Of,      // sha256of FILE DIGEST: with or without "sha256:"
	"statsize":    statSize,      // statsize DIR: each regular file below DIR can be read and has as many bytes as stat says
	"checktree":   checkTree,     // checktree MOUNTPOINT: all that the digests, ids and sizes in ids/ promise; prints how many images and layers
	"hasjson":     hasJSON,       // hasjson FILE FILTER: jq's filter gives neither false nor null
	"randread":    randRead,      // randread FILE DIGEST: eight readers at random offsets get the bytes that DIGEST is of
	"registry":    startRegistry, // registry [-auth|-held|-stuck|-answers|-flaky|-mirror ORIGIN] NAME: start one; sets $NAME to HOST:PORT. -held: uploads wait for release; -stuck: downloads, after the first half; -answers: see answers; -flaky: nothing is answered at the first time of asking
	"fileserver":  fileServer,    // fileserver NAME DIR: serve the files in DIR by HTTP, with ranges; sets $NAME to HOST:PORT
	"sigstorekey": sigstoreKey,   // sigstorekey NAME [PASSPHRASE]: make NAME.key and NAME.pub
	"stopengine":  stopEngine,    // stopengine: the engine stands still; with -go it goes on, with -kill it is killed
	"engine":      startEngine,   // engine [-tls|-disk SIZE]: a Docker engine of this script's own; sets $DOCKER_HOST
	"countsaves":  countSaves,    // countsaves: what asks the engine from now on is counted
	"saves":       saves,         // saves N: the engine was asked for N saves since the last look

	"rootless": rootless, // rootless: an ordinary user of this script's own, with what podman needs, and his number as $USERID; then as LINE and asroot LINE run bash in his mount namespace

	"proxy":        startProxy,   // proxy [-user USER:PASSWORD] REGISTRY NAME: one that leads to a registry, whatever is asked for; sets $NAME to HOST:PORT
	"proxied":      proxied,      // [!] proxied NAME TEXT: the proxy was asked for what has TEXT in it since the last look
	"stopregistry": stopRegistry, // stopregistry NAME
	"startagain":   startAgain,   // startagain NAME: a registry that was stopped, with what it had and at its address; nothing waits there any more
	"held":         held,         // held NAME: wait until an upload or a download waits
	"release":      release,      // release NAME: let all of them go on
	"answers":      answers,      // answers NAME HOW: what requests for a part of a blob get from now on: right, stuck, none (416), whole (200), cut, busy (429), wrong, tokens
	"sent":         sent,         // sent NAME VARIABLE: sets it to how many bytes of parts have been sent
	"asked":        asked,        // asked NAME FILE: writes to it which manifests and blobs have been fetched since the last time, a line each
	"abandoned":    abandoned,    // abandoned NAME: wait until the client has given up all that waited
}
