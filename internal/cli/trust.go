package cli

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"

	"github.com/spf13/pflag"

	"github.com/berth-runtime/berth/internal/config"
)

// trustFlags say whom to trust where sessions are encrypted, and what to show.
type trustFlags struct {
	caFile, certFile, keyFile string
}

func (t *trustFlags) add(f *pflag.FlagSet) {
	f.StringVar(&t.caFile, "tls-ca", "", "CA bundle `FILE` for TLS streaming sessions (default: the system's CAs and the certificate of berthd)")
	f.StringVar(&t.certFile, "tls-cert", "", "client certificate `FILE` for TLS streaming sessions")
	f.StringVar(&t.keyFile, "tls-key", "", "private key `FILE` for --tls-cert")
}

// sessionTLS is how to connect to the stream server if that is encrypted.
func (a *app) sessionTLS() (*tls.Config, error) {
	pool, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("read system CAs: %w", err)
	}
	if file := a.trust.caFile; file != "" {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("--tls-ca: %w", err)
		}
		if !pool.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("--tls-ca %s: no PEM certificate found", file)
		}
	} else if cfg, err := config.Load(a.configFile, false); err == nil && cfg.Stream.TLS {
		// Without the right to read either, the system's authorities have the word.
		cert, _, _ := cfg.TLSFiles()
		if text, err := os.ReadFile(cert); err == nil {
			pool.AppendCertsFromPEM(text)
		}
	}
	out := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}
	if a.trust.certFile != "" || a.trust.keyFile != "" {
		pair, err := tls.LoadX509KeyPair(a.trust.certFile, a.trust.keyFile)
		if err != nil {
			return nil, fmt.Errorf("--tls-cert and --tls-key: %w", err)
		}
		out.Certificates = []tls.Certificate{pair}
	}
	return out, nil
}
