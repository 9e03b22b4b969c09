package registry

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/proxy"
)

// A failure is a request that failed. Its text has been cleaned of credentials, and it does not wrap what it was made
// from, which may still have them.
type failure struct {
	text      string
	condition error         // what errors.Is finds; nil: nothing that has a name
	status    int           // the HTTP status, 0 if there was no answer
	temporary bool          // the same request may succeed a little later
	after     time.Duration // how long the registry asks to wait; 0 if it does not say
}

func (f *failure) Error() string { return f.text }
func (f *failure) Unwrap() error { return f.condition }

// maxText is how many bytes of a registry's own words go into an error.
const maxText = 300

// clean returns text without what may be credentials: the secrets given, userinfo and queries of URLs (those of
// redirects are signed), and whatever would break a line.
func clean(text string, secrets []string) string {
	for _, s := range secrets {
		if s != "" {
			text = strings.ReplaceAll(text, s, "***")
		}
	}
	text = urlUser.ReplaceAllString(text, "$1***@")
	text = urlQuery.ReplaceAllString(text, "$1")
	return strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == ' ' || unicode.IsControl(r) }), " ")
}

var (
	urlUser  = regexp.MustCompile(`(://)[^\s"'/@]+@`)
	urlQuery = regexp.MustCompile(`(://[^\s"'?]*)\?[^\s"']*`)
)

// sendFailure is the failure of a request that got no answer, or lost it halfway. doing says which, without a query.
func sendFailure(doing string, err error, secrets []string) error {
	var known *failure
	if errors.As(err, &known) {
		return err
	}
	var outer *url.Error
	host := ""
	if errors.As(err, &outer) { // its URL may be the one that the registry redirected to
		if u, bad := url.Parse(outer.URL); bad == nil {
			host = u.Host
		}
		err = outer.Err
	}
	f := &failure{text: doing + ": " + clean(err.Error(), secrets), condition: conditionOf(err)}
	if blame := proxy.Blame(err, host); blame != "" {
		f.text = doing + ": " + blame
		if refused := (*proxy.Refused)(nil); errors.As(err, &refused) {
			if f.temporary = refused.Status >= 500; refused.Status == http.StatusProxyAuthRequired {
				f.status, f.condition = refused.Status, imgsrc.ErrDenied
			}
		}
		return f
	}
	var dns *net.DNSError
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	switch {
	case errors.Is(f.condition, context.Canceled), errors.Is(f.condition, syscall.ECONNREFUSED), errors.Is(f.condition, syscall.ETIMEDOUT):
	case errors.As(err, &dns), errors.Is(err, errRedirect):
	case errors.As(err, &certificate), errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		f.text += ": use --tls-verify=false, or insecure in registries.conf, if this registry has no certificate that this machine trusts"
	default:
		f.temporary = true // a connection that broke
	}
	if errors.Is(f.condition, syscall.ETIMEDOUT) && !strings.Contains(f.text, "time") {
		f.text += ": it timed out"
	}
	return f
}

// conditionOf is what an error of the network means to whoever reads a file.
func conditionOf(err error) error {
	var dns *net.DNSError
	var timeout net.Error
	switch {
	case errors.Is(err, errStalled), errors.Is(err, errLate), errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return syscall.ETIMEDOUT
	case errors.Is(err, context.Canceled):
		return context.Canceled
	case errors.As(err, &dns), errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return syscall.EHOSTUNREACH
	case errors.Is(err, syscall.ECONNREFUSED):
		return syscall.ECONNREFUSED
	}
	return nil
}

var (
	errStalled  = errors.New("no byte came for too long")
	errLate     = errors.New("it did not answer in time")
	errRedirect = errors.New("a redirect that is not followed")
)

// statusFailure is the failure that a registry has answered with. It reads the answer's body.
func statusFailure(doing string, resp *http.Response, secrets []string) *failure {
	f := &failure{status: resp.StatusCode}
	f.text = fmt.Sprintf("%s: %d %s", doing, resp.StatusCode, http.StatusText(resp.StatusCode))
	if words := clean(answerText(resp.Body), secrets); words != "" {
		f.text += ": " + words
	}
	switch code := resp.StatusCode; {
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		f.condition = imgsrc.ErrDenied
	case code == http.StatusNotFound:
		f.condition = imgsrc.ErrNotFound
	case code == http.StatusMethodNotAllowed, code == http.StatusNotImplemented:
		f.condition = imgsrc.ErrUnsupported
	case code == http.StatusTooManyRequests, code >= 500:
		f.temporary = true
		f.after = retryAfter(resp.Header.Get("Retry-After"))
	}
	return f
}

// answerText is what a registry says of its error, in the form of the distribution specification or OAuth's; empty if
// it says nothing that is meant for people.
func answerText(body io.Reader) string {
	b, err := io.ReadAll(io.LimitReader(body, 64<<10))
	if err != nil {
		return ""
	}
	var doc struct {
		Errors []struct{ Code, Message string } `json:"errors"`

		Details     string `json:"details"`
		Description string `json:"error_description"`
	}
	if json.Unmarshal(b, &doc) != nil {
		return ""
	}
	var words []string
	for _, e := range doc.Errors {
		if e.Message == "" {
			e.Message = e.Code
		}
		words = append(words, e.Message)
	}
	text := strings.Join(append(words, doc.Details, doc.Description), " ")
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "") + "..."
	}
	return text
}

// retryAfter reads the header of that name: seconds or a date. 0 if it is neither.
func retryAfter(text string) time.Duration {
	if n, err := strconv.ParseUint(text, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if t, err := http.ParseTime(text); err == nil {
		return max(0, time.Until(t))
	}
	return 0
}
