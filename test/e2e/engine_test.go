package e2e

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/test/reaper"
)

// An engine is Debian's dockerd, with a socket and directories of its own. Those are the run's and not the script's: a socket's
// path has to be short.
type engine struct {
	dir     string
	process *exec.Cmd
	counter *saveCounter // nil: nothing is counted
}

// startEngine starts one, which ends with the script. With -tls it also listens at $ENGINE_TLS for who has the certificates in
// $ENGINE_CERTS. With -disk its images are on a disk of that size, at $ENGINE_DISK.
func startEngine(ts *testscript.TestScript, neg bool, args []string) {
	tls, disk := slices.Equal(args, []string{"-tls"}), len(args) == 2 && args[0] == "-disk"
	usage(ts, neg, args, len(args) == 0 || tls || disk, "engine [-tls|-disk SIZE]")
	need(ts, false, []string{"dockerd", "docker"})
	s := of(ts)
	dir, err := os.MkdirTemp(current.dir, "e")
	ts.Check(err)
	host := "unix://" + filepath.Join(dir, "sock")
	log, err := os.Create(filepath.Join(dir, "log"))
	ts.Check(err)
	defer log.Close()
	cmd := exec.Command("dockerd", "--iptables=false", "--ip-forward=false", "--bridge=none", "--exec-root", filepath.Join(dir, "exec"),
		"--data-root", filepath.Join(dir, "data"), "-p", filepath.Join(dir, "pid"), "-H", host)
	if tls {
		cmd.Args = append(cmd.Args, "-H", "tcp://127.0.0.1:0", "--tlsverify")
		for flag, file := range engineCertificates(ts, filepath.Join(dir, "certs")) {
			cmd.Args = append(cmd.Args, "--"+flag, file)
		}
	}
	if disk {
		data := filepath.Join(dir, "data")
		ts.Check(os.Mkdir(data, 0o700))
		ts.Check(unix.Mount("tmpfs", data, "tmpfs", 0, "size="+args[1]))
		ts.Setenv("ENGINE_DISK", data)
	}
	cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), reaper.RunVar+"="+current.dir), log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	ts.Check(cmd.Start())
	s.engines = append(s.engines, &engine{dir: dir, process: cmd})
	ts.Setenv("DOCKER_HOST", host)
	poll(ts, "dockerd to answer at "+host, func() bool { return exec.Command("docker", "-H", host, "version").Run() == nil })
	if tls {
		text, err := os.ReadFile(filepath.Join(dir, "log"))
		ts.Check(err)
		listens := regexp.MustCompile(`API listen on (127[0-9.]*:[0-9]+)`).FindSubmatch(text)
		if listens == nil {
			ts.Fatalf("dockerd does not say where it listens: %s", text)
		}
		ts.Setenv("ENGINE_TLS", "tcp://"+string(listens[1]))
		ts.Setenv("ENGINE_CERTS", filepath.Join(dir, "certs"))
	}
}

// engineCertificates makes one certificate that is the authority's, the engine's and its clients', and returns its files by
// the flags that they are for.
func engineCertificates(ts *testscript.TestScript, dir string) map[string]string {
	need(ts, false, []string{"openssl"})
	ts.Check(os.Mkdir(dir, 0o755))
	files := map[string]string{}
	for flag, name := range map[string]string{"tlscacert": "ca.pem", "tlscert": "cert.pem", "tlskey": "key.pem"} {
		files[flag] = filepath.Join(dir, name)
	}
	ts.Check(exec.Command("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=engine",
		"-addext", "subjectAltName=IP:127.0.0.1", "-keyout", files["tlskey"], "-out", files["tlscert"]).Run())
	text, err := os.ReadFile(files["tlscert"])
	ts.Check(err)
	ts.Check(os.WriteFile(files["tlscacert"], text, 0o644))
	return files
}

// stopEngine makes the engine stand still, as one that hangs: what asks it waits. With -go it goes on, with -kill it is gone.
func stopEngine(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	signal, known := map[string]unix.Signal{"": unix.SIGSTOP, "-go": unix.SIGCONT, "-kill": unix.SIGKILL}[strings.Join(args, " ")]
	usage(ts, neg, args, len(s.engines) > 0 && known, "stopengine [-go|-kill]")
	ts.Check(unix.Kill(s.engines[len(s.engines)-1].process.Process.Pid, signal))
}

// A saveCounter is between an engine and those who ask it.
type saveCounter struct {
	proxy  http.Handler
	server *httptest.Server
	saves  atomic.Int64
}

// countSaves has the engine asked through a counter from now on.
func countSaves(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	usage(ts, neg, args, len(args) == 0 && len(s.engines) > 0, "countsaves")
	e := s.engines[len(s.engines)-1]
	socket := filepath.Join(e.dir, "counted")
	l, err := net.Listen("unix", socket)
	ts.Check(err)
	to := filepath.Join(e.dir, "sock")
	e.counter = &saveCounter{proxy: &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: "engine"})
		},
		FlushInterval: -1,
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", to)
		}},
	}}
	e.counter.server = httptest.NewUnstartedServer(e.counter)
	ts.Check(e.counter.server.Listener.Close())
	e.counter.server.Listener = l
	e.counter.server.Start()
	ts.Setenv("DOCKER_HOST", "unix://"+socket)
}

func (c *saveCounter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasSuffix(r.URL.Path, "/images/get") || strings.HasSuffix(r.URL.Path, "/get") && strings.Contains(r.URL.Path, "/images/") {
		c.saves.Add(1)
	}
	c.proxy.ServeHTTP(w, r)
}

// saves wants an engine to have been asked for so many saves since the last look.
func saves(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	usage(ts, neg, args, len(args) == 1 && len(s.engines) > 0 && s.engines[len(s.engines)-1].counter != nil, "saves N")
	want, err := strconv.ParseInt(args[0], 10, 64)
	ts.Check(err)
	if got := s.engines[len(s.engines)-1].counter.saves.Swap(0); got != want {
		ts.Fatalf("the engine was asked for %d saves, and not for %d", got, want)
	}
}

// stop ends the engine, which ends what it has started, and takes its directories away.
func (e *engine) stop() {
	if e.counter != nil {
		e.counter.server.CloseClientConnections()
		e.counter.server.Close()
	}
	_ = e.process.Process.Signal(syscall.SIGTERM)
	killed := time.AfterFunc(20*time.Second, func() { _ = unix.Kill(-e.process.Process.Pid, unix.SIGKILL) })
	_ = e.process.Wait()
	killed.Stop()
	for _, m := range reaper.MountsBelow(e.dir) {
		_ = unix.Unmount(m, unix.MNT_DETACH)
	}
	_ = os.RemoveAll(e.dir)
}
